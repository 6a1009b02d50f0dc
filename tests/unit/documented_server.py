"""Whom do the examples of docs/api.md talk to? Both doors over the real gateway; a scripted engine plays Llama 3.1."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from replica import process_metrics, running_fleet

from deployments.config import parse_config
from deployments.gateway import ServiceGateway
from deployments.ingress.grpc import GrpcIngress, IngressSettings
from deployments.ingress.http import HttpIngress, HttpSettings
from deployments.ingress.status_page import StatusPage
from deployments.policies.router import LeastTokens
from llama31.codec import ModelCodec
from llama31.engine import EngineRequest
from llama31.scripted_engine import Script
from llama31.tokenizer import Tokenizer

MODEL = "llama-3.1-8b"
# Slow enough for a time limit to cut an answer, fast enough for a unit test.
STEP_S = 0.002
START_S = 10.0

_TOOL_RESULT = "<|start_header_id|>ipython<|end_header_id|>"
_COLOURS = ("Blue.", "Green.", "Red.")
# What the prompt holds -> what the model says; the first that fits.
_ANSWERS = (
    (_TOOL_RESULT, "It is 21 degrees in Paris.<|eot_id|>"),
    ("get_weather", '{"name": "get_weather", "parameters": {"city": "Paris"}}<|eot_id|>'),
    ("Count to a million.", " ".join(str(i) for i in range(1, 2000))),
    ("List three fruits.", "1. Apple\n2. Pear\n3. Plum\n<|eot_id|>"),
    ("as JSON", '{"city": "Paris", "people": 2100000}<|eot_id|>'),
    ("The capital of France is", " Paris.<|end_of_text|>"),
    ("The capital of Italy is", " Rome.<|end_of_text|>"),
    ("capital of France", "Paris.<|eot_id|>"),
)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where both doors listen."""

    grpc: str
    http: str


@contextmanager
def documented_server(codec: ModelCodec) -> Iterator[Addresses]:
    """Both doors in a thread of their own, so that examples may block."""
    opened: list[Addresses] = []
    is_open, may_end = threading.Event(), threading.Event()

    def run() -> None:
        try:
            asyncio.run(_serve(codec, opened, is_open, may_end))
        finally:
            is_open.set()

    thread = threading.Thread(target=run, name="documented-server", daemon=True)
    thread.start()
    assert is_open.wait(START_S), "the server did not start"
    try:
        yield opened[0]
    finally:
        may_end.set()
        thread.join(START_S)


async def _serve(
    codec: ModelCodec, opened: list[Addresses], is_open: threading.Event, may_end: threading.Event
) -> None:
    engine = {"kind": "scripted", "device": "cpu", "kv_cache_bytes": 1 << 30, "max_model_tokens": 131_072}
    config = parse_config({"model": MODEL, "engine": engine}, "test")
    async with running_fleet(Script(answer=_speaker(codec.tokenizer), step_s=STEP_S)) as (fleet, _, _):
        gateway = ServiceGateway(config, codec, fleet, LeastTokens(), process_metrics())
        doors = (
            GrpcIngress(gateway, IngressSettings(port=0)),
            HttpIngress(gateway, HttpSettings(port=0), StatusPage(gateway, (), {})),
        )
        ports = [await door.start() for door in doors]
        opened.append(Addresses(f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"))
        is_open.set()
        await asyncio.to_thread(may_end.wait)
        await asyncio.gather(*(door.stop() for door in doors))


def _speaker(tokenizer: Tokenizer) -> Callable[[EngineRequest], Sequence[int]]:
    def speak(request: EngineRequest) -> Sequence[int]:
        prompt = tokenizer.decode_bytes(request.prompt_token_ids).decode("utf-8", "replace")
        if "Name a colour." in prompt:
            return _ids(tokenizer, f"{_COLOURS[request.sampling.seed % 3]}<|eot_id|>")
        return _ids(tokenizer, next((text for sign, text in _ANSWERS if sign in prompt), "Hello!<|eot_id|>"))

    return speak


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text that ends, or does not, with a control token."""
    said, mark, name = text.partition("<|")
    return tokenizer.encode(said) + ([tokenizer.special_id(mark + name)] if mark else [])
