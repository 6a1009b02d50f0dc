"""Does the HTTP door answer, refuse, cancel and drain as a client may expect of it?"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from http_door import CHAT, CHAT_BODY, COMPLETION_BODY, COMPLETIONS, Door, answer_of, opened, post
from scripted_gateway import (
    MODEL,
    USAGE,
    Request,
    ScriptedGateway,
    failing,
    flood,
    hang,
    hang_before_start,
    model,
    started,
)

from deployments.call import ReplicaStatus
from deployments.ingress import http, openai_codec
from deployments.ingress.http import HttpIngress, HttpSettings
from deployments.ingress.status_page import StatusPage
from deployments.tenant import Tenant
from llama31 import errors
from llama31.chat import ChoiceDone, Completed, CompletionRequest, Delta, Event, FinishReason
from tests.waiting import soon


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with opened(max_body_bytes=2**20) as found:
        yield found


def error_of(response: Any) -> tuple[int, str, str | None]:
    """Status, code and field; the answer must have OpenAI's shape."""
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["request_id"] == response.headers["x-request-id"]
    return response.status_code, error["code"], error["param"]


async def test_chat(door: Door) -> None:
    response = await door.chat(headers={"x-request-id": "my-id.1_A"})
    assert response.json()["choices"][0]["message"]["content"] == "Hello there"
    assert response.json()["usage"]["total_tokens"] == 5
    assert response.headers["x-request-id"] == door.gateway.calls[0].request_id == "my-id.1_A"
    assert response.headers["x-llama31-replica"] == "replica-1"
    assert response.headers["x-llama31-model-revision"] == "rev-1"
    assert response.headers["server"] == "llama31"
    assert "access-control-allow-origin" not in response.headers


async def test_chat_stream(door: Door) -> None:
    *chunks, last = await door.events(CHAT, CHAT_BODY)
    assert last == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Hello there"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_completions(door: Door) -> None:
    response = await door.client.post(COMPLETIONS, json=COMPLETION_BODY)
    assert response.json()["choices"][0]["text"] == "Hello there"
    *chunks, last = await door.events(COMPLETIONS, COMPLETION_BODY)
    assert last == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello there"


async def one_word(request: Request) -> AsyncIterator[Event]:
    assert isinstance(request, CompletionRequest)
    yield started()
    for choice in range(request.options.num_choices):
        yield Delta(choice, f"{request.prompt}{choice}")
        yield ChoiceDone(choice, FinishReason.END_OF_TURN)
    yield Completed(USAGE)


async def test_several_prompts(door: Door) -> None:
    door.gateway.script = one_word
    body = {"model": MODEL, "prompt": ["a", "b", "c"], "n": 2}
    answer = (await door.client.post(COMPLETIONS, json=body)).json()
    assert [(c["index"], c["text"]) for c in answer["choices"]] == list(enumerate(["a0", "a1", "b0", "b1", "c0", "c1"]))
    assert answer["usage"]["completion_tokens"] == 3 * USAGE.output_tokens
    *chunks, _ = await door.events(COMPLETIONS, body)
    texts = ["" for _ in range(6)]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == ["a0", "a1", "b0", "b1", "c0", "c1"]


async def test_one_refused_prompt_refuses_all(door: Door) -> None:
    async def script(request: Request) -> AsyncIterator[Event]:
        if isinstance(request, CompletionRequest) and request.prompt == "b":
            raise errors.ContextTooLong(9, 1, 8)
        async for event in hang(request):
            yield event

    door.gateway.script = script
    response = await door.client.post(COMPLETIONS, json={"model": MODEL, "prompt": ["a", "b"], "stream": True})
    assert error_of(response) == (400, "context_length_exceeded", "prompt")
    for _ in range(2):
        await soon(door.gateway.closed.acquire())


async def test_models(door: Door) -> None:
    listed = (await door.client.get("/v1/models")).json()
    assert [(m["id"], m["object"], m["max_model_len"]) for m in listed["data"]] == [(MODEL, "model", 8192)]
    assert (await door.client.get(f"/v1/models/{MODEL}")).json() == listed["data"][0]
    for name in ("other", "..%2F..%2Fetc%2Fpasswd", "%ff"):
        assert error_of(await door.client.get(f"/v1/models/{name}")) == (404, "model_not_found", "model")
    assert error_of(await door.chat(model="llama-3.1-9b")) == (404, "model_not_found", "model")


async def test_tokenize_and_detokenize(door: Door) -> None:
    answer = (await door.client.post("/tokenize", json={"prompt": "hi"})).json()
    assert answer == {"count": 3, "max_model_len": 8192, "tokens": [1, 104, 105], "token_strs": None}
    body = {"model": MODEL, "prompt": "hi", "add_special_tokens": False}
    assert (await door.client.post("/tokenize", json=body)).json()["tokens"] == [104, 105]
    assert (await door.client.post("/detokenize", json={"tokens": [104, 105]})).json() == {"prompt": "hi"}
    response = await door.client.post("/detokenize", json={"model": "other", "tokens": [1]})
    assert error_of(response) == (404, "model_not_found", "model")


TOKEN_BODIES = {"/tokenize": {"prompt": "x" * 2**15}, "/detokenize": {"tokens": [104] * 2**15}}


@pytest.mark.parametrize("path", TOKEN_BODIES)
async def test_tokens_count_as_a_request(path: str) -> None:
    async with opened(only_acme) as door:
        key = {"authorization": "Bearer acme"}
        assert (await door.client.post(path, json=TOKEN_BODIES[path], headers=key)).status_code == 200
        assert door.gateway.visits == ["acme"]
        door.gateway.refusal = errors.RateLimited("rate limit: 1 request a minute", 7.0)
        response = await door.client.post(path, json=TOKEN_BODIES[path], headers=key)
        assert error_of(response) == (429, "rate_limit_exceeded", None)
        assert response.headers["retry-after"] == "7"


@pytest.mark.parametrize("path", TOKEN_BODIES)
async def test_many_tokens_are_read_and_written_off_the_loop(
    door: Door, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            threads.append(threading.current_thread())
            return function(*args)

        return noted

    for module, name in (
        (openai_codec, "decode_tokenize"),
        (openai_codec, "decode_detokenize"),
        (http, "to_json"),
    ):
        monkeypatch.setattr(module, name, noting(getattr(module, name)))
    assert (await door.client.post(path, json=TOKEN_BODIES[path])).status_code == 200
    assert len(threads) == 2
    assert threading.main_thread() not in threads


async def test_health_and_readiness(door: Door) -> None:
    for path in ("/health", "/healthz"):
        response = await door.client.get(path, headers={"host": "evil.example"})
        assert response.json() == {"status": "ok"}
        assert (await door.client.head(path)).status_code == 200
    assert (await door.client.get("/ready")).json() == {"status": "ready"}
    door.gateway.set_models(model(MODEL, "loading"))
    response = await door.client.get("/ready")
    assert error_of(response) == (503, "no_ready_replica", None)
    assert response.headers["retry-after"] == "1"


GATEWAY_ERRORS: list[tuple[BaseException, int, str, str | None, str]] = [
    (errors.InvalidRequest("spec.sampling.top_k", "no"), 400, "invalid_argument", "top_k", "false"),
    (errors.ContextTooLong(9, 1, 8), 400, "context_length_exceeded", "messages", "false"),
    (errors.PermissionDenied("spec.stop.ignore_eos", "no"), 403, "permission_denied", "ignore_eos", "false"),
    (errors.DuplicateRequest("x"), 409, "duplicate_request_id", None, "false"),
    (errors.Overloaded("full", 0.25), 429, "overloaded", None, "true"),
    (errors.NoReadyReplica("m"), 503, "no_ready_replica", None, "true"),
    (errors.StreamInterrupted("r", 0, "lost"), 503, "stream_interrupted", None, "true"),
    (errors.DeadlineExceeded("queue"), 504, "deadline_exceeded", None, "false"),
    (errors.RequestCancelled("by an operator"), 499, "cancelled", None, "false"),
    (RuntimeError("/etc/secret path"), 500, "internal", None, "false"),
    (errors.EngineFailed("/etc/secret path"), 500, "internal", None, "false"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "status", "code", "param", "retry"), GATEWAY_ERRORS, ids=lambda v: str(v)[:30])
async def test_an_error_before_the_first_event_is_a_status(
    door: Door, error: BaseException, status: int, code: str, param: str | None, retry: str, stream: bool
) -> None:
    door.gateway.script = failing(error)
    response = await door.chat(stream=stream)
    assert error_of(response) == (status, code, param)
    assert response.headers["x-should-retry"] == retry
    assert ("retry-after" in response.headers) == (retry == "true")
    assert "secret" not in response.text
    assert "Traceback" not in response.text


async def test_when_to_come_back(door: Door) -> None:
    door.gateway.script = failing(errors.Overloaded("full", 0.25))
    headers = (await door.chat()).headers
    assert (headers["retry-after"], headers["retry-after-ms"], headers["x-should-retry"]) == ("1", "250", "true")
    door.gateway.script = failing(errors.QuotaExceeded("above the whole budget", float("inf")))
    headers = (await door.chat()).headers
    assert (headers["retry-after"], headers["x-should-retry"]) == ("3600", "false")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.StreamInterrupted("r", 2, "lost"), "stream_interrupted"),
        (errors.InternalError("/etc/secret"), "internal"),
        (RuntimeError("/etc/secret"), "internal"),
    ],
)
async def test_an_error_after_the_first_event_is_the_last_event(door: Door, error: BaseException, code: str) -> None:
    door.gateway.script = failing(error, after_start=True)
    *_, delta, last = await door.events(CHAT, CHAT_BODY)
    assert delta["choices"][0]["delta"]["content"] == "Hel"
    assert last["error"]["code"] == code
    assert "secret" not in json.dumps(last)
    assert (await door.chat()).status_code == (503 if code == "stream_interrupted" else 500)


async def test_an_answer_that_stops_without_an_end(door: Door) -> None:
    async def script(request: Request) -> AsyncIterator[Event]:
        yield started()

    door.gateway.script = script
    assert (await door.events(CHAT, CHAT_BODY))[-1]["error"]["code"] == "internal"
    assert error_of(await door.chat())[:2] == (500, "internal")


@pytest.mark.parametrize("given", ["a" * 5000, "a%0d%0aforged log line", "ä", ""])
async def test_a_request_id_that_is_none_is_replaced(door: Door, given: str) -> None:
    response = await door.chat(headers={"x-request-id": given.encode("latin-1")})  # type: ignore[dict-item]
    assert response.status_code == 200
    assert len(response.headers["x-request-id"]) == 32


async def test_deadlines(door: Door) -> None:
    assert error_of(await door.chat(headers={"x-request-timeout-ms": "0"}))[:2] == (504, "deadline_exceeded")
    assert not door.gateway.calls
    door.gateway.script = hang_before_start
    assert error_of(await door.chat(headers={"x-request-timeout-ms": "20"}))[:2] == (504, "deadline_exceeded")
    await soon(door.gateway.closed.acquire())
    door.gateway.script = hang
    response = await door.chat(headers={"x-request-timeout-ms": "20"}, stream=True)
    assert '"code":"deadline_exceeded"' in response.text
    for wrong in ("-1", "soon", "1.5", "9" * 11):
        response = await door.chat(headers={"x-request-timeout-ms": wrong})
        assert error_of(response) == (400, "invalid_argument", "x-request-timeout-ms")


@pytest.mark.parametrize("script", [hang, hang_before_start])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_the_engine(door: Door, script: Any, stream: bool) -> None:
    door.gateway.script = script
    _, writer = await door.connect()
    writer.write(post(json.dumps({**CHAT_BODY, "stream": stream}).encode()))
    await soon(door.gateway.called.wait())
    writer.close()
    await soon(door.gateway.closed.acquire())


async def test_a_client_that_leaves_while_the_writer_is_blocked(door: Door) -> None:
    door.gateway.script = flood
    reader, writer = await door.connect()
    writer.write(post(json.dumps({**CHAT_BODY, "stream": True}).encode()))
    await soon(reader.readline())
    writer.transport.abort()
    await soon(door.gateway.closed.acquire())


async def test_a_client_that_does_not_read_is_dropped() -> None:
    async with opened(write_stall_s=0.1) as door:
        door.gateway.script = flood
        with socket.create_connection(("127.0.0.1", door.port)) as client:
            client.sendall(post(json.dumps({**CHAT_BODY, "stream": True}).encode()))
            await soon(door.gateway.closed.acquire())
        assert (await door.client.get("/health")).status_code == 200


def long_answer(text_bytes: int) -> Callable[[Request], AsyncIterator[Event]]:
    async def script(request: Request) -> AsyncIterator[Event]:
        yield started()
        yield Delta(0, "x" * text_bytes)
        yield ChoiceDone(0, FinishReason.END_OF_TURN)
        yield Completed(USAGE)

    return script


async def test_a_whole_answer_that_nobody_reads_is_dropped_and_holds_up_a_drain_until_then() -> None:
    async with opened(write_stall_s=0.2) as door:
        door.gateway.script = long_answer(24 * 2**20)
        with socket.create_connection(("127.0.0.1", door.port)) as client:
            client.sendall(post(json.dumps(CHAT_BODY).encode()))
            await soon(door.gateway.closed.acquire())
            assert not await door.ingress.drain(0.01)
            assert await soon(door.ingress.drain())


async def test_a_whole_answer_that_is_read_slowly_arrives() -> None:
    size_bytes = 24 * 2**20
    async with opened(write_stall_s=0.5) as door:
        door.gateway.script = long_answer(size_bytes)
        reader, writer = await door.connect()
        writer.write(post(json.dumps(CHAT_BODY).encode()))
        data = bytearray()
        while piece := await soon(reader.read(2**20)):
            data += piece
            # All of it takes far longer than the limit, and no part of it does.
            await asyncio.sleep(0.05 * len(piece) / 2**20)
        writer.close()
        status, headers, body = answer_of(bytes(data))
        assert (status, body["choices"][0]["message"]["content"]) == (200, "x" * size_bytes)
        assert headers["content-length"] == str(door.ingress.sent_bytes)


async def test_drain() -> None:
    async with opened() as door:
        door.gateway.script = hang
        running = asyncio.create_task(door.chat())
        await soon(door.gateway.called.wait())
        assert not await door.ingress.drain(0.01)
        assert (await door.client.get("/health")).status_code == 200
        assert error_of(await door.client.get("/ready"))[:2] == (503, "draining")
        response = await door.chat()
        assert error_of(response)[:2] == (503, "draining")
        assert response.headers["connection"] == "close"
        running.cancel()
        await soon(door.gateway.closed.acquire())
        assert await soon(door.ingress.drain())


async def test_stop_cancels_what_still_runs() -> None:
    async with opened() as door:
        door.gateway.script = hang
        running = asyncio.create_task(door.chat(stream=True))
        await soon(door.gateway.called.wait())
        await soon(door.ingress.stop(), 5)
        await soon(door.gateway.closed.acquire())
        await asyncio.gather(running, return_exceptions=True)
        await door.ingress.stop()


async def test_a_port_in_use_is_named(door: Door) -> None:
    page = StatusPage(ScriptedGateway(), [], {})
    with pytest.raises(errors.PortInUse, match="--http-port"):
        await HttpIngress(door.gateway, HttpSettings(port=door.port), page).start()
    with pytest.raises(errors.ConfigInvalid, match="cannot listen on 192"):
        await HttpIngress(door.gateway, HttpSettings(host="192.0.2.1", port=0), page).start()


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", CHAT, (405, "method_not_allowed")),
        ("OPTIONS", CHAT, (405, "method_not_allowed")),
        ("DELETE", f"/v1/models/{MODEL}", (405, "method_not_allowed")),
        ("POST", "/v1//chat/completions", (404, "not_found")),
        ("POST", "/V1/chat/completions", (404, "not_found")),
        ("GET", "/v1/models/", (404, "not_found")),
        ("POST", "/v1/chat/completions/", (404, "not_found")),
        ("POST", "/v1/chat%2Fcompletions", (404, "not_found")),
        ("POST", "/v1/../v1/chat/completions", (404, "not_found")),
        ("POST", "/collective_rpc", (404, "not_found")),
        ("GET", "/metrics", (404, "not_found")),
        ("POST", "/llama31.v1.ChatService/Chat", (404, "not_found")),
    ],
)
async def test_paths_and_methods(door: Door, method: str, path: str, expected: tuple[int, str]) -> None:
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\norigin: http://localhost:3000\r\nconnection: close\r\n\r\n"
    status, headers, body = answer_of(await door.raw(head.encode()))
    assert (status, body["error"]["code"]) == expected
    assert ("allow" in headers) == (status == 405)
    assert not any(name.startswith("access-control") for name in headers)


@pytest.mark.parametrize(
    ("host", "origin", "refused"),
    [
        ("localhost:8000", None, None),
        ("LOCALHOST", "http://localhost:3000", None),
        ("127.0.0.1:1", "https://127.0.0.1", None),
        ("[::1]:8000", "http://[::1]:8000", None),
        ("evil.example", None, "host"),
        ("evil.example:8000", "http://evil.example:8000", "host"),
        ("localhost.evil.example", None, "host"),
        ("localhost:8000@evil.example", None, "host"),
        ("127.0.0.1.evil.example", None, "host"),
        ("", None, "host"),
        ("localhost", "https://evil.example", "origin"),
        ("localhost", "http://localhost.evil.example", "origin"),
        ("localhost", "null", "origin"),
    ],
)
async def test_without_keys_no_foreign_page_is_answered(host: str, origin: str | None, refused: str | None) -> None:
    headers = {"host": host} | ({"origin": origin} if origin else {})
    async with opened() as door:
        for response in (await door.chat(headers), await door.client.get("/fleet", headers=headers)):
            if refused:
                assert error_of(response) == (403, "permission_denied", refused)
            else:
                assert response.status_code == 200
        assert (await door.client.get("/health", headers=headers)).status_code == 200
        assert len(door.gateway.calls) == (0 if refused else 1)


async def test_with_keys_or_beyond_loopback_any_name_may_be_used() -> None:
    headers = {"host": "llama.example", "origin": "https://chat.example"}
    async with opened(only_acme) as door:
        assert (await door.chat({**headers, "authorization": "Bearer acme"})).status_code == 200
    async with opened(host="0.0.0.0") as door:
        assert (await door.chat(headers)).status_code == 200


async def test_what_a_wrong_method_may_try_instead(door: Door) -> None:
    assert (await door.client.get(CHAT)).headers["allow"] == "POST"


def only_acme(credentials: Sequence[str]) -> Tenant:
    if list(credentials) != ["Bearer acme"]:
        raise errors.Unauthenticated("invalid credentials")
    return Tenant("acme", models=frozenset({MODEL}))


async def test_keys() -> None:
    async with opened(only_acme) as door:
        door.gateway.set_models(model(MODEL), model("secret-model"))
        for path in ("/v1/models", "/fleet"):
            assert error_of(await door.client.get(path))[:2] == (401, "unauthenticated")
        response = await door.chat()
        assert error_of(response)[:2] == (401, "unauthenticated")
        assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/ready"):
            assert (await door.client.get(path)).status_code == 200
        page = (await door.client.get("/")).text
        assert MODEL not in page
        assert "secret-model" not in page
        key = {"authorization": "Bearer acme"}
        assert (await door.chat(headers=key)).status_code == 200
        assert door.gateway.calls[0].tenant.name == "acme"
        listed = (await door.client.get("/v1/models", headers=key)).json()
        assert [m["id"] for m in listed["data"]] == [MODEL]
        for response in (
            await door.client.get("/v1/models/secret-model", headers=key),
            await door.client.post("/tokenize", json={"model": "secret-model", "prompt": "x"}, headers=key),
        ):
            assert error_of(response) == (404, "model_not_found", "model")
            assert "known: tiny" in response.text
        door.gateway.replicas = tuple(
            ReplicaStatus(f"of-{name}", name, "tp1", "ready", "") for name in (MODEL, "secret-model")
        )
        fleet = await door.client.get("/fleet", headers=key)
        assert fleet.status_code == 200
        assert f"of-{MODEL}" in fleet.text
        assert "secret-model" not in fleet.text
        assert "<dd>1<small> of 1</small></dd>" in fleet.text, "totals are those of granted models, too"
        twice = [("authorization", "Bearer acme"), ("authorization", "Bearer other")]
        assert error_of(await door.client.get("/v1/models", headers=twice))[:2] == (401, "unauthenticated")
