"""Does every call find its tenant, and does nobody without a key get further than health?"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from replica import process_metrics, sample
from scripted_gateway import MODEL, USAGE, Request, ScriptedGateway, model, started

from deployments.client import Client, connect
from deployments.ingress.auth import KeyDesk
from deployments.ingress.grpc import GrpcIngress, IngressSettings
from deployments.policies.quota import QuotaLimits
from deployments.tenant import LOCAL, Tenant
from deployments.tenants_file import NewKey, file_lines, load_tenants, make_key
from llama31 import errors
from llama31.chat import ChoiceDone, Completed, Event, FinishReason, Priority, Started
from llama31.v1 import chat_service_pb2 as chat_pb
from llama31.v1 import model_service_pb2 as model_pb

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
NOW_S = datetime(2026, 11, 23, tzinfo=UTC).timestamp()
OLD, NEW, EXPIRED, OTHER, NARROW = (make_key() for _ in range(5))


def row(key: NewKey, rest: str = "") -> str:
    return f'{{id: "{key.id}", sha256: "{key.sha256}"{rest}}}'


FILE = f"""
tenants:
  acme:
    keys:
      - {row(OLD)}
      - {row(EXPIRED, ", expires: 2026-11-22T23:59:59Z")}
      - {row(NEW, ", expires: 2026-11-23T00:00:01Z")}
    models: [{MODEL}, llama-3.1-8b]
    priority: standard
    requests_per_minute: 100
    tokens_per_minute: 5000
    concurrent_requests: 3
    permissions: [benchmark]
    language: warn
  other:
    keys: [{row(OTHER)}]
  narrow:
    keys: [{row(NARROW)}]
    models: [llama-3.1-405b]
"""
ACME = Tenant(
    "acme",
    frozenset({MODEL, "llama-3.1-8b"}),
    Priority.STANDARD,
    frozenset({"benchmark"}),
    QuotaLimits(100, 5000, 3),
    "warn",
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tenants.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture
def desk(file: Path) -> KeyDesk:
    return KeyDesk(str(file), process_metrics(), now_s=lambda: NOW_S)


def replace_file(path: Path, text: str) -> None:
    """As careful people and mounted secrets do it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, path)


def test_a_key_is_random_and_only_its_digest_is_kept() -> None:
    assert len({make_key().key for _ in range(100)}) == 100
    new = make_key()
    assert len(new.key) == 60
    assert new.key[17:] not in file_lines("acme", new)


@pytest.mark.parametrize("expires", [None, datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)])
def test_printed_lines_are_a_tenants_file(tmp_path: Path, expires: datetime | None) -> None:
    new, path = make_key(), tmp_path / "t.yaml"
    path.write_text(file_lines("acme", new, expires))
    ring = load_tenants(str(path))
    assert ring.find(new.key, NOW_S) == Tenant("acme")
    assert ring.rows[new.id].expires_s == (expires.timestamp() if expires else None)


def test_the_documented_file_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "security.md").read_text()
    (tmp_path / "t.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    (row,) = load_tenants(str(tmp_path / "t.yaml")).rows.values()
    assert row.tenant.limits == QuotaLimits(600, 200_000, 32)


@pytest.mark.parametrize(
    ("credentials", "tenant"),
    [
        ([f"Bearer {OLD.key}"], ACME),
        ([f"bearer {OLD.key}"], ACME),
        ([f"BEARER  {OLD.key} "], ACME),
        ([f"Bearer {NEW.key}"], ACME),
        ([f"Bearer {OTHER.key}"], Tenant("other")),
    ],
)
def test_known_keys(desk: KeyDesk, credentials: list[str], tenant: Tenant) -> None:
    assert desk.authenticate(credentials) == tenant


@pytest.mark.parametrize(
    ("credentials", "words", "cause"),
    [
        pytest.param([], "missing credentials", "missing", id="none"),
        pytest.param([""], "invalid credentials", "invalid", id="empty"),
        pytest.param(["Bearer"], "invalid credentials", "invalid", id="no token"),
        pytest.param(["Bearer "], "invalid credentials", "invalid", id="empty token"),
        pytest.param([OLD.key], "invalid credentials", "invalid", id="no scheme"),
        pytest.param([f"Basic {OLD.key}"], "invalid credentials", "invalid", id="other scheme"),
        pytest.param([f"Bearer {make_key().key}"], "invalid credentials", "invalid", id="unknown"),
        pytest.param([f"Bearer {OLD.key[:17]}{OTHER.key[17:]}"], "invalid credentials", "invalid", id="mixed"),
        pytest.param([f"Bearer {OLD.key[:-1]}"], "invalid credentials", "invalid", id="short"),
        pytest.param([f"Bearer {OLD.key}x"], "invalid credentials", "invalid", id="long"),
        pytest.param([f"Bearer {OLD.key}, Bearer {OLD.key}"], "invalid credentials", "invalid", id="folded"),
        pytest.param([f"Bearer {EXPIRED.key}"], "invalid credentials", "invalid", id="expired"),
        pytest.param(["Bearer x" * 1000], "invalid credentials", "invalid", id="8 KB"),
        pytest.param([f"Bearer {OLD.key}" + " " * 300], "invalid credentials", "invalid", id="padded"),
        pytest.param([f"Bearer {OLD.key}", f"Bearer {OTHER.key}"], "multiple credentials", "multiple", id="two"),
        pytest.param([f"Bearer {OLD.key}"] * 2, "multiple credentials", "multiple", id="twice"),
    ],
)
def test_refused_credentials(
    desk: KeyDesk, credentials: list[str], words: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = sample("llama31_unauthenticated_total", cause=cause)
    with pytest.raises(errors.Unauthenticated, match=words) as caught:
        desk.authenticate(credentials)
    assert sample("llama31_unauthenticated_total", cause=cause) == before + 1
    assert "l31_" not in str(caught.value) + caplog.text


async def test_rotation_without_restart(desk: KeyDesk, file: Path) -> None:
    fresh = make_key()
    await desk.refresh()
    replace_file(file, file_lines("acme", fresh))
    assert desk.authenticate([f"Bearer {OLD.key}"]) == ACME
    await desk.refresh()
    assert desk.authenticate([f"Bearer {fresh.key}"]) == Tenant("acme")
    with pytest.raises(errors.Unauthenticated):
        desk.authenticate([f"Bearer {OLD.key}"])


@pytest.mark.parametrize("broken", ["tenants: [", "", "tenants: {acme: {wrong: 1}}", None])
async def test_a_broken_file_changes_nothing(
    desk: KeyDesk, file: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    refused = sample("llama31_reloads_total", what="tenants", outcome="refused")
    if broken is None:
        file.unlink()
    else:
        replace_file(file, broken)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await desk.refresh()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "\n" not in caplog.records[0].getMessage()
    assert sample("llama31_reloads_total", what="tenants", outcome="refused") == refused + 1
    assert desk.authenticate([f"Bearer {OLD.key}"]) == ACME
    replace_file(file, FILE)
    await desk.refresh()
    assert desk.authenticate([f"Bearer {OLD.key}"]) == ACME


DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tenants: {Acme: {}}", "tenants.Acme"),
        ("tenants: {'': {}}", "tenants"),
        ("tenants: {a: {keys: [{id: '0123456789ab', sha256: 'my-secret-password'}]}}", "tenants.a.keys.0.sha256"),
        (f"tenants: {{a: {{keys: [{{id: 'xyz', sha256: '{DIGEST}'}}]}}}}", "tenants.a.keys.0.id"),
        (
            f"tenants: {{a: {{keys: [{{id: '0123456789ab', sha256: '{DIGEST}', expires: 2027-01-01 10:00:00}}]}}}}",
            "expires: Input should have timezone",
        ),
        ("tenants: {a: {requests_per_minute: -1}}", "tenants.a.requests_per_minute"),
        ("tenants: {a: {requests_per_minute: '60'}}", "tenants.a.requests_per_minute"),
        ("tenants: {a: {priority: highest}}", "tenants.a.priority"),
        ("tenants: {a: {permissions: [root]}}", "tenants.a.permissions"),
        ("tenants: {a: {}, a: {}}", "'a' stands twice"),
        (
            f"tenants: {{a: {{keys: [&k {{id: '0123456789ab', sha256: '{DIGEST}'}}]}}, b: {{keys: [*k]}}}}",
            "0123456789ab stands twice: at a and at b",
        ),
        ("- 1", "must be a mapping"),
    ],
)
def test_faults_of_a_tenants_file_are_words(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(errors.ConfigInvalid) as caught:
        load_tenants(str(path))
    assert words in str(caught.value)
    assert "my-secret-password" not in str(caught.value)


@dataclass(frozen=True)
class Door:
    gateway: ScriptedGateway
    address: str
    channel: grpc.aio.Channel

    async def ask(self, path: str, request: bytes, *credentials: str) -> bytes:
        metadata = [("authorization", value) for value in credentials]
        response: bytes = await self.channel.unary_unary(path)(request, timeout=5, metadata=metadata)
        return response

    async def status_of(self, path: str, request: bytes, *credentials: str) -> tuple[grpc.StatusCode, str, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.ask(path, request, *credentials)
        error = caught.value
        info = error_details_pb2.ErrorInfo()
        for detail in status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"]).details:
            detail.Unpack(info)
        return error.code(), info.reason, error.details() or ""


@pytest.fixture
async def door(desk: KeyDesk) -> AsyncIterator[Door]:
    gateway = ScriptedGateway()
    gateway.set_models(model(MODEL), model("secret-model"))
    ingress = GrpcIngress(gateway, IngressSettings(port=0), desk.authenticate)
    address = f"127.0.0.1:{await ingress.start()}"
    channel = grpc.aio.insecure_channel(address)
    yield Door(gateway, address, channel)
    await channel.close()
    await ingress.stop()


def chat_bytes(model_name: str = MODEL) -> bytes:
    message = chat_pb.Message(role=chat_pb.ROLE_USER, parts=[chat_pb.Part(text="hi")])
    spec = chat_pb.ChatSpec(model=model_name, messages=[message])
    return bytes(chat_pb.ChatRequest(spec=spec).SerializeToString())


CHAT = "/llama31.v1.ChatService/Chat"
MODELS = "/llama31.v1.ModelService"
TOKENIZE = model_pb.TokenizeRequest(model="secret-model", text="hi").SerializeToString()


@pytest.mark.parametrize(
    "path",
    [
        CHAT,
        "/llama31.v1.CompletionService/Complete",
        *(f"{MODELS}/{name}" for name in ("ListModels", "GetModel", "Tokenize", "Detokenize")),
    ],
)
async def test_nothing_without_a_key(door: Door, path: str) -> None:
    code, reason, text = await door.status_of(path, b"\xff\xff not even a message")
    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert "missing credentials" in text
    assert door.gateway.calls == []


async def test_two_keys_are_seen_as_two(door: Door) -> None:
    code, _, text = await door.status_of(CHAT, chat_bytes(), f"Bearer {OLD.key}", f"Bearer {OTHER.key}")
    assert (code, text.split(":")[0]) == (grpc.StatusCode.UNAUTHENTICATED, "multiple credentials")


async def test_the_tenant_is_in_the_call(door: Door) -> None:
    await door.ask(CHAT, chat_bytes(), f"Bearer {OLD.key}")
    assert door.gateway.calls[0].tenant == ACME


async def test_health_needs_no_key(door: Door) -> None:
    response = await door.ask("/grpc.health.v1.Health/Check", b"")
    assert health_pb2.HealthCheckResponse.FromString(response).status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("credentials", [(), (f"Bearer {OLD.key}",)])
async def test_reflection_needs_a_key(door: Door, credentials: tuple[str, ...]) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = door.channel.stream_stream(REFLECTION)(
        iter([request.SerializeToString()]), metadata=[("authorization", value) for value in credentials]
    )
    if not credentials:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        return
    answer = reflection_pb2.ServerReflectionResponse.FromString(await call.read())
    assert "llama31.v1.ChatService" in [service.name for service in answer.list_services_response.service]


async def test_other_models_do_not_exist(door: Door) -> None:
    key = f"Bearer {OLD.key}"
    listed = model_pb.ListModelsResponse.FromString(await door.ask(f"{MODELS}/ListModels", b"", key))
    assert [found.name for found in listed.models] == [MODEL]
    for path, request in (
        (f"{MODELS}/GetModel", model_pb.GetModelRequest(name="secret-model").SerializeToString()),
        (f"{MODELS}/Tokenize", TOKENIZE),
        (f"{MODELS}/Detokenize", model_pb.DetokenizeRequest(model="secret-model", ids=[1]).SerializeToString()),
    ):
        code, reason, text = await door.status_of(path, request, key)
        assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
        assert text == f"model 'secret-model' is not served here; known: {MODEL}"


async def test_warnings_come_as_trailing_metadata(door: Door) -> None:
    async def script(request: Request) -> AsyncIterator[Event]:
        first = started()
        yield Started(*(getattr(first, name) for name in first.__slots__[:-1]), warnings=("seems to be in 'nl'",))
        yield ChoiceDone(0, FinishReason.END_OF_TURN)
        yield Completed(USAGE)

    door.gateway.script = script
    metadata = (("authorization", f"Bearer {OLD.key}"),)
    call = door.channel.unary_unary(CHAT)(chat_bytes(), metadata=metadata)
    await call
    assert dict(await call.trailing_metadata())["x-llama31-warning"] == "seems to be in 'nl'"
    assert "x-llama31-warning" not in dict(await call.initial_metadata())


async def test_the_client_sends_its_key(door: Door) -> None:
    async with Client(door.address, api_key=OLD.key) as llama:
        assert await llama.chat("Hi").text() == "Hello there"
        assert [m.name for m in await llama.models()] == [MODEL]
    async with Client(door.address) as llama:
        with pytest.raises(errors.Unauthenticated, match="missing credentials"):
            await llama.chat("Hi", model=MODEL).text()


@pytest.mark.parametrize(
    ("address", "options", "is_refused"),
    [
        ("localhost:9000", {}, False),
        ("127.0.0.1:9000", {}, False),
        ("127.1.2.3:9000", {}, False),
        ("[::1]:9000", {}, False),
        ("ipv6:[::1]:9000", {}, False),
        ("dns:///localhost:9000", {}, False),
        ("unix:/run/llama.sock", {}, False),
        ("10.0.0.1:9000", {}, True),
        ("localhost.example.com:9000", {}, True),
        ("dns://8.8.8.8/llama.example.com:443", {}, True),
        ("[2001:db8::1]:9000", {}, True),
        ("0.0.0.0:9000", {}, True),
        ("10.0.0.1:9000", {"send_key_in_plaintext": True}, False),
    ],
)
def test_no_key_in_plaintext_to_another_machine(address: str, options: dict[str, Any], is_refused: bool) -> None:
    if not is_refused:
        connect(address, api_key="key", **options).close()
        return
    with pytest.raises(errors.ConfigInvalid, match="in plaintext"):
        connect(address, api_key="key", **options)
    connect(address).close()


def test_everybody_is_local_without_keys() -> None:
    assert LOCAL.may_use("anything")
    assert LOCAL.permissions == {"benchmark"}
