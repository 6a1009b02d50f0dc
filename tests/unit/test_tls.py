"""Do both doors speak TLS with the right certificate, take only the right clients, and follow rotated files?"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from certificates import Authority, install
from replica import process_metrics, sample
from scripted_gateway import MODEL, ScriptedGateway

from deployments.client import Client
from deployments.client_access import Tls, channel_credentials
from deployments.config_sections import TlsConfig
from deployments.ingress.grpc import GrpcIngress, IngressSettings
from deployments.ingress.http import HttpIngress, HttpSettings
from deployments.ingress.status_page import StatusPage
from deployments.ingress.tls import ServerTls, check_tls_files
from llama31 import errors

OURS, NEXT, FOREIGN = Authority("ours"), Authority("next"), Authority("foreign")

# Asks a port as a client that trusts one CA file and may show a certificate; True = it got an answer.
Ask = Callable[[int, Tls], Awaitable[bool]]


@pytest.fixture
def files(tmp_path: Path) -> TlsConfig:
    """A server of OURS; clients of OURS, NEXT and FOREIGN; every CA."""
    certificate, key = OURS.issue()
    install(tmp_path, cert=certificate, key=key, ca=OURS.pem)
    for name, authority in (("ours", OURS), ("next", NEXT), ("foreign", FOREIGN)):
        certificate, key = authority.issue("client")
        install(tmp_path, **{f"{name}_ca": authority.pem, f"{name}_cert": certificate, f"{name}_key": key})
    return TlsConfig(cert_file=str(tmp_path / "cert.pem"), key_file=str(tmp_path / "key.pem"))


def mutual(files: TlsConfig) -> TlsConfig:
    return files.model_copy(update={"client_ca_file": str(Path(files.cert_file).with_name("ca.pem"))})


def trusting(files: TlsConfig, server: str, client: str = "") -> Tls:
    """A client that trusts one authority and, if it has a certificate, whose."""
    directory = Path(files.cert_file).parent
    own = (str(directory / f"{client}_cert.pem"), str(directory / f"{client}_key.pem")) if client else ("", "")
    return Tls(str(directory / f"{server}_ca.pem"), *own)


@asynccontextmanager
async def grpc_door(tls: ServerTls) -> AsyncIterator[int]:
    ingress = GrpcIngress(ScriptedGateway(), IngressSettings(port=0), credentials=tls.grpc_credentials())
    yield await ingress.start()
    await ingress.stop()


async def ask_grpc(port: int, trust: Tls) -> bool:
    async with grpc.aio.secure_channel(f"localhost:{port}", channel_credentials(trust)) as channel:
        try:
            return bool(await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False


@asynccontextmanager
async def http_door(tls: ServerTls) -> AsyncIterator[int]:
    gateway = ScriptedGateway()
    ingress = HttpIngress(gateway, HttpSettings(port=0), StatusPage(gateway, [], {}), tls=tls.http_context())
    yield await ingress.start()
    await ingress.stop()


async def ask_http(port: int, trust: Tls) -> bool:
    context = ssl.create_default_context(cafile=trust.ca_file)
    if trust.cert_file:
        context.load_cert_chain(trust.cert_file, trust.key_file)
    # An address as name sends no SNI, which must not matter.
    for name in ("localhost", "127.0.0.1"):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
            writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            answer = await reader.readline()
            writer.close()
        except (ssl.SSLError, ConnectionError):
            return False
        if answer != b"HTTP/1.1 200 OK\r\n":
            return False
    return True


DOORS = [pytest.param(grpc_door, ask_grpc, id="grpc"), pytest.param(http_door, ask_http, id="http")]
Door = Callable[[ServerTls], "asyncio._AsyncGeneratorContextManager[int]"]


@pytest.mark.parametrize(("door", "ask"), DOORS)
async def test_only_a_client_that_knows_the_authority_connects(files: TlsConfig, door: Door, ask: Ask) -> None:
    async with door(ServerTls(files, process_metrics())) as port:
        assert await ask(port, trusting(files, "ours"))
        assert not await ask(port, trusting(files, "foreign"))


@pytest.mark.parametrize(("door", "ask"), DOORS)
async def test_mutual_tls_takes_only_its_own_clients(files: TlsConfig, door: Door, ask: Ask) -> None:
    async with door(ServerTls(mutual(files), process_metrics())) as port:
        assert await ask(port, trusting(files, "ours", "ours"))
        assert not await ask(port, trusting(files, "ours", "foreign"))
        assert not await ask(port, trusting(files, "ours"))


def hours_left(file: str) -> float:
    return (sample("llama31_certificate_expiry_timestamp_seconds", file=file) - time.time()) / 3600


async def test_a_metric_tells_when_certificates_end(files: TlsConfig) -> None:
    tls = ServerTls(mutual(files), process_metrics())
    assert hours_left("cert_file") == pytest.approx(1, abs=0.1)
    assert hours_left("client_ca_file") == pytest.approx(1, abs=0.1)
    certificate, key = OURS.issue(hours=48)
    # A chain ends with the first of its certificates.
    shorter, _ = OURS.issue(hours=24)
    install(Path(files.cert_file).parent, cert=certificate + shorter, key=key)
    async with grpc_door(tls) as port:
        assert await ask_grpc(port, trusting(files, "ours", "ours"))
    assert hours_left("cert_file") == pytest.approx(24, abs=0.1)


@pytest.mark.parametrize(("door", "ask"), DOORS)
async def test_rotated_files_are_used_without_restart(files: TlsConfig, door: Door, ask: Ask) -> None:
    loaded = sample("llama31_reloads_total", what="tls", outcome="loaded")
    async with door(ServerTls(mutual(files), process_metrics())) as port:
        assert await ask(port, trusting(files, "ours", "ours"))
        certificate, key = NEXT.issue()
        install(Path(files.cert_file).parent, cert=certificate, key=key, ca=NEXT.pem)
        assert await ask(port, trusting(files, "next", "next"))
        assert not await ask(port, trusting(files, "ours", "next"))
        assert not await ask(port, trusting(files, "next", "ours"))
    assert sample("llama31_reloads_total", what="tls", outcome="loaded") == loaded + 1


# What makes each door speak: a request, or HTTP/2's opening with empty settings.
HELLOS = [
    pytest.param(grpc_door, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", id="grpc"),
    pytest.param(http_door, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n", id="http"),
]


def talk(
    port: int, context: ssl.SSLContext, hello: bytes, session: ssl.SSLSession | None = None
) -> tuple[bool, bool, ssl.SSLSession | None]:
    """Whether an answer came, whether it came to a resumed session, and the session to resume next time."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as connection,
        ):
            connection.sendall(hello)
            answer = connection.recv(1024)
            return bool(answer), bool(connection.session_reused), connection.session
    except (ssl.SSLError, ConnectionError):
        return False, False, None


@pytest.mark.parametrize(("door", "hello"), HELLOS)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_client_of_a_removed_authority_resumes_its_session(
    files: TlsConfig, door: Door, hello: bytes, version: ssl.TLSVersion
) -> None:
    directory = Path(files.cert_file).parent
    context = ssl.create_default_context(cafile=directory / "ours_ca.pem")
    context.load_cert_chain(directory / "ours_cert.pem", directory / "ours_key.pem")
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"] if door is grpc_door else ["http/1.1"])
    async with door(ServerTls(mutual(files), process_metrics())) as port:
        answered, _, session = await asyncio.to_thread(talk, port, context, hello)
        assert answered
        answered, resumed, session = await asyncio.to_thread(talk, port, context, hello, session)
        assert answered
        # So that the refusal below is about a session that would have been resumed.
        assert resumed
        install(directory, ca=NEXT.pem)
        answered, _, _ = await asyncio.to_thread(talk, port, context, hello, session)
        assert not answered


@pytest.mark.parametrize(("door", "ask"), DOORS)
@pytest.mark.parametrize("broken", ["half", "other key"])
async def test_broken_files_change_nothing(
    files: TlsConfig, door: Door, ask: Ask, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = NEXT.issue()
    pems = {"half": {"cert": certificate[:200]}, "other key": {"cert": certificate}}[broken]
    with caplog.at_level(logging.ERROR):
        async with door(ServerTls(files, process_metrics())) as port:
            install(Path(files.cert_file).parent, **pems)
            for _ in range(3):
                assert await ask(port, trusting(files, "ours"))
            assert len([r for r in caplog.records if r.name == "deployments.ingress.tls"]) == 1
            install(Path(files.cert_file).parent, cert=certificate, key=key)
            assert await ask(port, trusting(files, "next"))


async def test_the_client_speaks_tls(files: TlsConfig) -> None:
    trust = trusting(files, "ours", "ours")
    async with (
        grpc_door(ServerTls(mutual(files), process_metrics())) as port,
        Client(f"localhost:{port}", api_key="key", tls=trust) as llama,
    ):
        assert await llama.chat("Hi", model=MODEL, timeout_s=5).text() == "Hello there"


@pytest.mark.parametrize("door", [grpc_door, http_door])
async def test_plaintext_on_the_tls_port_gets_nothing(files: TlsConfig, door: Door) -> None:
    async with door(ServerTls(files, process_metrics())) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert b"hello" not in (await asyncio.wait_for(reader.read(), 5)).lower()
        writer.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cert_file": "/nowhere/cert.pem"}, "No such file"),
        ({"client_ca_file": "/nowhere/ca.pem"}, "/nowhere/ca.pem: No such file"),
        ({"key_file": "ours_key.pem"}, "KEY_VALUES_MISMATCH"),
    ],
)
def test_unusable_files_are_refused_in_words(files: TlsConfig, changes: dict[str, str], words: str) -> None:
    directory = Path(files.cert_file).parent
    wrong = files.model_copy(update={name: str(directory / path) for name, path in changes.items()})
    with pytest.raises(errors.ConfigInvalid, match=words):
        check_tls_files(wrong)


def test_a_client_names_the_file_that_it_lacks() -> None:
    with pytest.raises(errors.ConfigInvalid, match=r"/nowhere/ca.pem: No such file"):
        Client("localhost:1", tls=Tls("/nowhere/ca.pem"))
