"""What does every path of the token benchmark carry? The same prompts, ids, texts and messages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from deployments.config import ServiceConfig, checkpoint_dir, parse_config
from deployments.weights import prepare_weights
from llama31.codec import ModelCodec, load_codec
from llama31.v1 import chat_service_pb2 as pb

MODEL = "llama-3.1-8b"
METHOD = "/llama31.v1.ChatService/StreamChat"
# Never in the text, so that the whole search for it runs.
STOP_SEQUENCE = "###"
QUESTION = "Write a long text."
_TEXT = (Path(__file__).resolve().parents[1] / "LICENSE").read_text()


@dataclass(frozen=True, slots=True)
class Load:
    """One measurement: so many streams at once, each asking `requests` times for `tokens` tokens.

    A token of every stream becomes ready each `step_s`, as in an engine; a path that is behind may pack what
    is ready into one message, unless `one_token_messages`. `lateness`: note when each token arrived.
    """

    streams: int
    tokens: int
    step_s: float
    requests: int = 1
    one_token_messages: bool = False
    lateness: bool = False

    @property
    def total_tokens(self) -> int:
        """Tokens that the client receives in all."""
        return self.streams * self.tokens * self.requests


def service_config(step_s: float, tenants_file: str | None = None) -> ServiceConfig:
    """The 8B with its own tokenizer behind the scripted engine."""
    # The load is what the benches say: admission must not hold back a part of it.
    engine = {"kind": "scripted", "device": "cpu", "kv_cache_bytes": 1 << 20, "weights": "dummy", "max_running": 4096}
    ingress: dict[str, object] = {"port": 0, "metrics_port": 0}
    if tenants_file is not None:
        ingress["auth"] = {"tenants_file": tenants_file}
    script = {"step_s": step_s}
    return parse_config({"model": MODEL, "engine": engine | {"script": script}, "ingress": ingress}, "bench")


@cache
def codec() -> ModelCodec:
    """Llama 3.1's own tokenizer."""
    config = service_config(0.0)
    prepare_weights(config, lambda line: None)
    return load_codec(config.spec.codec, checkpoint_dir(config))


def answer_ids(tokens: int) -> tuple[int, ...]:
    """Ids of English text, so that detokenising costs what it costs in service."""
    ids = codec().tokenizer.encode(_TEXT)
    return tuple((ids * (1 + tokens // len(ids)))[:tokens])


def answer_texts(tokens: int) -> list[str]:
    """The text of each of those ids, for servers that do not detokenise."""
    tokenizer = codec().tokenizer
    return [tokenizer.decode_bytes([token]).decode(errors="replace") for token in answer_ids(tokens)]


def request_bytes(load: Load) -> bytes:
    """One StreamChat request; limits are explicit and one stop sequence is set."""
    request = pb.StreamChatRequest()
    spec = request.spec
    spec.model = MODEL
    spec.messages.add(role=pb.ROLE_USER).parts.add(text=QUESTION)
    spec.stop.max_output_tokens = load.tokens
    spec.stop.stop_sequences.append(STOP_SEQUENCE)
    spec.returns.token_ids = load.one_token_messages or load.lateness
    return request.SerializeToString()
