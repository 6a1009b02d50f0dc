"""Does one trace lead from the client over the door and the gateway to the replica, and never hurt a request?"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import json_format
from opentelemetry.trace import SpanKind
from replica import MODEL, STEP_S, endless, running_gateway, says

from deployments import tracing
from deployments.config_sections import TracingConfig
from deployments.ingress.grpc import GrpcIngress, IngressSettings
from deployments.ingress.http import HttpIngress, HttpSettings
from deployments.ingress.status_page import StatusPage
from deployments.tenant import Tenant
from deployments.tracing import open_tracing
from llama31.scripted_engine import Script
from llama31.tokenizer import HuggingFaceTokenizer
from llama31.v1 import chat_service_pb2 as pb
from tests.otlp_collector import Collector, Span, collecting
from tests.waiting import soon

TRACE_ID, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE_ID}-{CALLER}-01", "tracestate": "vendor=opaque"}
LEFT_OUT = {"traceparent": f"00-{TRACE_ID}-{CALLER}-00"}
SECRET = "the-secret-question"
TENANT = Tenant("secret-tenant")
NOBODY_LISTENS = "http://127.0.0.1:1"

# Sends one chat and returns once the answer, or its refusal, is there.
Ask = Callable[..., Any]


@dataclass(frozen=True)
class Doors:
    """Both doors over one gateway, each in the same trace as the replica."""

    grpc: str
    http: str


@asynccontextmanager
async def doors(
    tokenizer: HuggingFaceTokenizer, config: TracingConfig | None, script: Script | None = None
) -> AsyncIterator[Doors]:
    ingress, replica = open_tracing(config, "llama31-ingress"), open_tracing(config, "llama31-replica")
    async with running_gateway(tokenizer, script or Script(), tracing=(ingress, replica)) as system:
        grpc_door = GrpcIngress(system.gateway, IngressSettings(port=0), lambda keys: TENANT, tracing=ingress)
        page = StatusPage(system.gateway, (), {})
        http_door = HttpIngress(system.gateway, HttpSettings(port=0), page, lambda keys: TENANT, tracing=ingress)
        try:
            yield Doors(f"127.0.0.1:{await grpc_door.start()}", f"http://127.0.0.1:{await http_door.start()}")
        finally:
            await grpc_door.stop()
            await http_door.stop()
    await asyncio.gather(*(tracing.close() for tracing in (ingress, replica) if tracing is not None))


async def ask_grpc(doors: Doors, headers: dict[str, str], stream: bool = True, **spec: Any) -> str:
    """The status code's name."""
    wanted = {"model": MODEL, "messages": [{"role": "ROLE_USER", "parts": [{"text": SECRET}]}], **spec}
    method, request, response = (
        ("StreamChat", pb.StreamChatRequest, pb.StreamChatResponse)
        if stream
        else ("Chat", pb.ChatRequest, pb.ChatResponse)
    )
    path = f"/llama31.v1.ChatService/{method}"
    async with grpc.aio.insecure_channel(doors.grpc) as channel:
        kind = channel.unary_stream if stream else channel.unary_unary
        call = kind(path, request.SerializeToString, response.FromString)(
            json_format.ParseDict({"spec": wanted}, request()), metadata=tuple(headers.items()), timeout=10
        )
        try:
            if stream:
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
    return "OK"


async def ask_http(doors: Doors, headers: dict[str, str], stream: bool = True, **fields: Any) -> str:
    """The status code."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": SECRET}], "stream": stream, **fields}
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        response = await client.post(f"{doors.http}/v1/chat/completions", json=body, headers=headers)
    return str(response.status_code)


def config_for(collector: Collector, sample_ratio: float = 1.0) -> TracingConfig:
    return TracingConfig(otlp_endpoint=collector.endpoint, sample_ratio=sample_ratio)


def by_service(spans: list[Span]) -> tuple[Span, Span, Span]:
    """Door, gateway, replica."""
    (door,) = (s for s in spans if s.service == "llama31-ingress" and s.message.kind == SpanKind.SERVER.value + 1)
    (gateway,) = (s for s in spans if s.name.startswith("gateway"))
    (replica,) = (s for s in spans if s.service == "llama31-replica")
    return door, gateway, replica


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("ask", "names"),
    [
        pytest.param(ask_grpc, ("llama31.v1.ChatService/StreamChat", "llama31.v1.ChatService/Chat"), id="grpc"),
        pytest.param(ask_http, ("POST /v1/chat/completions",) * 2, id="http"),
    ],
)
async def test_one_trace_from_the_client_to_the_replica(
    chatml_tokenizer: HuggingFaceTokenizer, ask: Ask, names: tuple[str, str], stream: bool
) -> None:
    with collecting() as collector:
        async with doors(chatml_tokenizer, config_for(collector), Script(answer=says(65, 66, 67))) as opened:
            assert await ask(opened, SAMPLED, stream) in ("OK", "200")
        door, gateway, replica = by_service(collector.wait_for(lambda spans: len(spans) == 3))
    assert {span.trace_id for span in (door, gateway, replica)} == {TRACE_ID}
    assert {span.message.trace_state for span in (door, gateway, replica)} == {"vendor=opaque"}
    parents = [span.message.parent_span_id.hex() for span in (door, gateway, replica)]
    assert parents == [CALLER, door.message.span_id.hex(), gateway.message.span_id.hex()]
    assert door.name == names[0 if stream else 1]
    assert gateway.events == ["admitted", "first token", "finished"]
    assert replica.events[-1] == "finished"
    assert replica.attributes["llama31.replica"] == "replica-1"
    tokens = "gen_ai.usage.output_tokens"
    assert gateway.attributes[tokens] == replica.attributes[tokens] == 3
    assert gateway.attributes["gen_ai.response.finish_reasons"] == ["END_OF_TURN"]
    for span in (door, gateway, replica):
        assert span.message.start_time_unix_nano <= span.message.end_time_unix_nano
        assert span.message.status.code == 0
        assert SECRET not in str(span.message)
        assert "secret-tenant" not in str(span.message)


@pytest.mark.parametrize(
    ("headers", "ratio", "is_traced", "is_callers"),
    [
        pytest.param({}, 1.0, True, False, id="nobody asked: by the ratio"),
        pytest.param({}, 0.0, False, False, id="left out by the ratio"),
        pytest.param(SAMPLED, 0.0, True, True, id="the caller samples"),
        pytest.param(LEFT_OUT, 1.0, False, True, id="the caller does not"),
        pytest.param({"traceparent": "00-nonsense-01"}, 1.0, True, False, id="no context"),
        pytest.param({"traceparent": "x" * 2000, "tracestate": "=,=;" * 200}, 1.0, True, False, id="garbage"),
        pytest.param({"traceparent": f"00-{'0' * 32}-{CALLER}-01"}, 1.0, True, False, id="an id of zeros"),
    ],
)
async def test_who_decides_what_is_traced(
    chatml_tokenizer: HuggingFaceTokenizer, headers: dict[str, str], ratio: float, is_traced: bool, is_callers: bool
) -> None:
    with collecting() as collector:
        async with doors(chatml_tokenizer, config_for(collector, ratio)) as opened:
            assert await ask_grpc(opened, headers) == "OK"
            assert await ask_http(opened, headers) == "200"
        spans = collector.spans
    assert len(spans) == (6 if is_traced else 0)
    assert {span.trace_id == TRACE_ID for span in spans} <= {is_callers}
    assert len({span.trace_id for span in spans}) == (0 if not is_traced else 1 if is_callers else 2)


async def test_without_configuration_nothing_is_sent(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    with collecting() as collector:
        async with doors(chatml_tokenizer, None) as opened:
            assert await ask_grpc(opened, SAMPLED) == "OK"
            assert await ask_http(opened, SAMPLED) == "200"
    assert collector.exports == 0


async def test_every_choice_is_a_sequence_of_its_own(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    with collecting() as collector:
        async with doors(chatml_tokenizer, config_for(collector)) as opened:
            assert await ask_http(opened, SAMPLED, n=3) == "200"
        names = sorted(span.name for span in collector.spans)
    assert names == ["POST /v1/chat/completions", "gateway chat", *["replica sequence"] * 3]


async def test_prompts_of_one_request_share_its_span(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    with collecting() as collector:
        async with doors(chatml_tokenizer, config_for(collector)) as opened:
            body = {"model": MODEL, "prompt": ["one", "two"]}
            async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
                response = await client.post(f"{opened.http}/v1/completions", json=body, headers=SAMPLED)
            assert response.status_code == 200
        spans = collector.spans
    (door,) = (span for span in spans if span.name == "POST /v1/completions")
    gateways = [span for span in spans if span.name == "gateway complete"]
    assert [span.message.parent_span_id for span in gateways] == [door.message.span_id] * 2
    assert {span.trace_id for span in spans} == {TRACE_ID}


@pytest.mark.parametrize(
    ("ask", "fields", "reason", "names"),
    [
        pytest.param(ask_grpc, {"model": "llama-9"}, "MODEL_NOT_FOUND", {"door"}, id="grpc, unknown model"),
        pytest.param(ask_http, {"model": "llama-9"}, "MODEL_NOT_FOUND", {"door"}, id="http, unknown model"),
        pytest.param(
            ask_grpc,
            {"stop": {"max_output_tokens": 5000}},
            "CONTEXT_LENGTH_EXCEEDED",
            {"door", "gateway chat"},
            id="grpc, too long",
        ),
        pytest.param(
            ask_http, {"max_tokens": 5000}, "CONTEXT_LENGTH_EXCEEDED", {"door", "gateway chat"}, id="http, too long"
        ),
    ],
)
async def test_a_refusal_is_the_status(
    chatml_tokenizer: HuggingFaceTokenizer, ask: Ask, fields: dict[str, Any], reason: str, names: set[str]
) -> None:
    with collecting() as collector:
        async with doors(chatml_tokenizer, config_for(collector)) as opened:
            assert await ask(opened, SAMPLED, **fields) not in ("OK", "200")
        spans = collector.spans
    assert {span.name if span.name.startswith("gateway") else "door" for span in spans} == names
    assert {(span.message.status.code, span.message.status.message) for span in spans} == {(2, reason)}


@pytest.mark.parametrize("ask", [ask_grpc, ask_http])
async def test_an_engine_that_dies_is_the_status_of_all_three(chatml_tokenizer: HuggingFaceTokenizer, ask: Ask) -> None:
    with collecting() as collector:
        script = Script(answer=endless, step_s=STEP_S, fail_at_step=3)
        async with doors(chatml_tokenizer, config_for(collector), script) as opened:
            await ask(opened, SAMPLED)
        door, gateway, replica = by_service(collector.spans)
    assert replica.message.status.message == "ENGINE_FAILED"
    assert gateway.message.status.message == door.message.status.message == "STREAM_INTERRUPTED"


async def test_a_client_that_leaves_is_the_status(
    chatml_tokenizer: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_EXPORT_EVERY_MS", 50)
    with collecting() as collector:
        script = Script(answer=endless, step_s=STEP_S)
        async with doors(chatml_tokenizer, config_for(collector), script) as opened:
            request = pb.StreamChatRequest()
            request.spec.model = MODEL
            request.spec.messages.add(role=1).parts.add(text=SECRET)
            async with grpc.aio.insecure_channel(opened.grpc) as channel:
                stream = channel.unary_stream("/llama31.v1.ChatService/StreamChat")
                call = stream(request.SerializeToString(), metadata=tuple(SAMPLED.items()))
                await soon(call.read())
                call.cancel()
            await soon(asyncio.to_thread(collector.wait_for, lambda spans: len(spans) == 3), 10)
        door, gateway, replica = by_service(collector.spans)
    assert door.message.status.message == gateway.message.status.message == "CANCELLED"
    assert replica.attributes["gen_ai.response.finish_reasons"] == ["ABORTED"]


async def test_probes_leave_no_spans(chatml_tokenizer: HuggingFaceTokenizer) -> None:
    with collecting() as collector:
        async with doors(chatml_tokenizer, config_for(collector)) as opened:
            async with httpx.AsyncClient(trust_env=False, base_url=opened.http) as client:
                for path in ("/health", "/ready", "/fleet", "/v1/models", "/nowhere"):
                    await client.get(path, headers=SAMPLED)
            async with grpc.aio.insecure_channel(opened.grpc) as channel:
                check = channel.unary_unary("/grpc.health.v1.Health/Check")
                assert await check(b"", metadata=tuple(SAMPLED.items()), timeout=5)
    assert collector.spans == []


async def test_a_collector_that_is_away_costs_no_request_anything(
    chatml_tokenizer: HuggingFaceTokenizer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(tracing, "_CLOSE_LIMIT_S", 0.2)
    config = TracingConfig(otlp_endpoint=NOBODY_LISTENS)
    async with doors(chatml_tokenizer, config) as opened:
        for _ in range(5):
            assert await soon(ask_grpc(opened, SAMPLED)) == "OK"
            assert await soon(ask_http(opened, SAMPLED)) == "200"
        closing_s = time.monotonic()
    assert time.monotonic() - closing_s < 4
    assert SECRET not in caplog.text
