"""What of a dying engine's own words reaches a client? Nothing, through any door; the log has them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from replica import MODEL, STEP_S, endless, running_gateway

from deployments.ingress.grpc import GrpcIngress, IngressSettings
from deployments.ingress.http import HttpIngress, HttpSettings
from deployments.ingress.status_page import StatusPage
from llama31.engine import EngineOutput
from llama31.errors import EngineFailed
from llama31.oip.v2 import inference_pb2 as oip_pb
from llama31.scripted_engine import Script, ScriptedEngine
from llama31.tokenizer import HuggingFaceTokenizer
from llama31.v1 import chat_service_pb2 as chat_pb
from llama31.v1 import completion_service_pb2 as completion_pb

TELLTALES = ("/srv/weights", "10.1.2.3", "pid 4242", "Traceback", "hunter2")
HOSTILE = (
    "rank 3 (stage 1, pid 4242 on 10.1.2.3) was lost: Traceback (most recent call last):\n"
    '  File "/srv/weights/load.py", line 7\nRuntimeError: {"token": "hunter2"}\r\n\r\ndata: [DONE]\x1b[2J'
)
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
SPEC = {"model": MODEL, "messages": [{"role": "ROLE_USER", "parts": [{"text": "hi"}]}]}
PROMPT = {"model": MODEL, "text": "hi"}


@dataclass(slots=True)
class Doors:
    """Both doors before one replica."""

    channel: grpc.aio.Channel
    web: httpx.AsyncClient


@asynccontextmanager
async def both_doors(tokenizer: HuggingFaceTokenizer) -> AsyncIterator[Doors]:
    async with running_gateway(tokenizer, Script(answer=endless, step_s=STEP_S)) as system:
        door = GrpcIngress(system.gateway, IngressSettings(port=0))
        web = HttpIngress(system.gateway, HttpSettings(port=0), StatusPage(system.gateway, (), {}))
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{await door.start()}")
        url = f"http://127.0.0.1:{await web.start()}"
        async with channel, httpx.AsyncClient(base_url=url, trust_env=False, timeout=5) as client:
            yield Doors(channel, client)
        await asyncio.gather(door.stop(), web.stop())


def sequence_fails(monkeypatch: pytest.MonkeyPatch, at_token: int) -> None:
    """One sequence ends with the engine's words; the engine lives."""
    advance = ScriptedEngine._advance

    def failing(engine: ScriptedEngine, sequence: Any) -> EngineOutput:
        output = advance(engine, sequence)
        is_last = sequence.emitted > at_token
        return EngineOutput(output.request_id, output.tokens, error=HOSTILE) if is_last else output

    monkeypatch.setattr(ScriptedEngine, "_advance", failing)


def engine_dies(monkeypatch: pytest.MonkeyPatch, at_token: int) -> None:
    """All sequences end with it."""
    next_step = ScriptedEngine.next_step

    async def dying(engine: ScriptedEngine) -> list[EngineOutput]:
        outputs = await next_step(engine)
        if engine.state().steps_total > at_token:
            raise EngineFailed(HOSTILE)
        return outputs

    monkeypatch.setattr(ScriptedEngine, "next_step", dying)


async def grpc_status(call: Any) -> str:
    """Everything that the trailing status of a failed call says."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert (info.reason, info.metadata["cause"]) == ("STREAM_INTERRUPTED", "engine_failed")
    return f"{caught.value!r}{caught.value.trailing_metadata()}{status}"


def stream(doors: Doors, method: str, spec: dict[str, object], request: Message) -> Any:
    message = json_format.ParseDict({"spec": spec}, request).SerializeToString()
    return doors.channel.unary_stream(f"/llama31.v1.{method}")(message, timeout=5)


async def item(doors: Doors, path: str, request: Message, answer: type[Message]) -> str:
    """The one answer of a stream of items."""

    async def requests() -> AsyncIterator[bytes]:
        yield request.SerializeToString()

    call = doors.channel.stream_stream(path)(requests(), timeout=5)
    return "".join([str(answer.FromString(data)) async for data in call])


async def grpc_chat(doors: Doors) -> str:
    return await grpc_status(stream(doors, "ChatService/Chat", SPEC, chat_pb.ChatRequest()))


async def grpc_stream(doors: Doors) -> str:
    request = completion_pb.StreamCompleteRequest()
    return await grpc_status(stream(doors, "CompletionService/StreamComplete", PROMPT, request))


async def grpc_item(doors: Doors) -> str:
    request = json_format.ParseDict({"item_id": "a", "spec": PROMPT}, completion_pb.CompleteManyRequest())
    path = "/llama31.v1.CompletionService/CompleteMany"
    found = await item(doors, path, request, completion_pb.CompleteManyResponse)
    assert "STREAM_INTERRUPTED" in found
    return found


async def oip_item(doors: Doors) -> str:
    request = oip_pb.ModelInferRequest(model_name=MODEL)
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"hi")
    path = "/inference.GRPCInferenceService/ModelStreamInfer"
    found = await item(doors, path, request, oip_pb.ModelStreamInferResponse)
    assert "STREAM_INTERRUPTED" in found
    return found


async def http_whole(doors: Doors) -> str:
    response = await doors.web.post("/v1/chat/completions", json=QUESTION)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "stream_interrupted")
    return f"{response.headers}{response.text}"


async def http_events(doors: Doors) -> str:
    response = await doors.web.post("/v1/chat/completions", json={**QUESTION, "stream": True})
    last = response.text.strip().split("\n\n")[-1]
    found = response.json() if response.status_code == 503 else json.loads(last.removeprefix("data: "))
    assert found["error"]["code"] == "stream_interrupted"
    return f"{response.headers}{response.text}"


@pytest.mark.parametrize("at_token", [0, 20], ids=["before_tokens", "after_tokens"])
@pytest.mark.parametrize("fails", [sequence_fails, engine_dies])
@pytest.mark.parametrize("ask", [grpc_chat, grpc_stream, grpc_item, oip_item, http_whole, http_events])
async def test_a_client_hears_only_which_kind_of_loss(
    ask: Any,
    fails: Any,
    at_token: int,
    chatml_tokenizer: HuggingFaceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "llama31.continuation")
    fails(monkeypatch, at_token)
    async with both_doors(chatml_tokenizer) as doors:
        heard = await ask(doors)
    assert "engine_failed" in heard
    assert not [word for word in TELLTALES if word in heard]
    told = [record.getMessage() for record in caplog.records if record.name == "llama31.continuation"]
    assert told
    assert all("pid 4242 on 10.1.2.3" in line and "\n" not in line and "\x1b" not in line for line in told)
