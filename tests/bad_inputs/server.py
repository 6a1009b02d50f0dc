"""Which real server does a case talk to, and is it clean afterwards? Everything but Ray and a model is real."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import grpc
import yaml
from replica import Replica, process_metrics, running_fleet

from deployments.config import ServiceConfig, parse_config
from deployments.config_sections import TlsConfig
from deployments.gateway import ServiceGateway
from deployments.ingress.auth import KeyDesk
from deployments.ingress.grpc import GrpcIngress, IngressSettings
from deployments.ingress.http import HttpIngress, HttpSettings
from deployments.ingress.status_page import StatusPage
from deployments.ingress.tls import ServerTls
from deployments.policies.router import LeastTokens
from deployments.tenancy import Tenancy
from deployments.tenants_file import NewKey, make_key
from llama31.codec import ModelCodec, load_codec
from llama31.engine import EngineRequest
from llama31.scripted_engine import Script
from llama31.v1 import chat_service_pb2 as chat_pb
from tests.bad_inputs.certificates import Certificates
from tests.waiting import until

MODEL = "llama-3.1-8b"
CLEAN_WITHIN_S = 1.0
SEND_BUFFER_BYTES = 16 * 2**10
# Its first character is made of several tokens.
ANSWER = "\N{MELTING FACE} Hello there."
END_OF_TURN_ID = 128009


@dataclass(frozen=True)
class Needs:
    """How the server of a case is set up. Limits that clients wait for are short here."""

    replicas: int = 1
    step_s: float = 0.001
    max_requests: int = 8192
    max_streams: int = 1024
    request_wait_s: float = 0.5
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    tls: bool = False
    reflection: bool = True
    is_spent_afterwards: bool = False


class Play:
    """What the engine answers; cases change it."""

    def __init__(self, codec: ModelCodec) -> None:
        self._codec = codec
        self.requests: list[EngineRequest] = []
        self.reset()

    def reset(self) -> None:
        """A short answer with an end."""
        self.ids: Sequence[int] = (*self._codec.tokenizer.encode(ANSWER), END_OF_TURN_ID)
        self.is_endless = False

    def answer(self, request: EngineRequest) -> Sequence[int]:
        """The script of every replica."""
        self.requests.append(request)
        return (self.word,) * (request.limits.max_output_tokens + 1) if self.is_endless else self.ids

    @property
    def word(self) -> int:
        """The token that an endless answer repeats."""
        return self._codec.tokenizer.encode(" hello")[0]


class Server:
    """One ingress over a gateway, a fleet, worker servers and scripted engines."""

    def __init__(self, needs: Needs, codec: ModelCodec, directory: Path) -> None:
        self.needs = needs
        self.codec = codec
        self.play = Play(codec)
        self.settings = IngressSettings(
            port=0,
            reflection=needs.reflection,
            write_stall_s=0.5,
            request_wait_s=needs.request_wait_s,
            handshake_s=0.5,
            max_streams_per_connection=needs.max_streams,
        )
        self.http_settings = HttpSettings(port=0, headers_s=needs.request_wait_s, body_s=1.0, write_stall_s=0.5)
        self.certificates = Certificates(directory) if needs.tls else None
        self.replicas: tuple[Replica, ...] = ()
        self._directory = directory
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Opens the port."""
        metrics = process_metrics()
        script = Script(answer=self.play.answer, step_s=self.needs.step_s)
        fleet, _, self.replicas = await self._stack.enter_async_context(running_fleet(*(script,) * self.needs.replicas))
        self.constants = self._write_tenants()
        self.desk = KeyDesk(str(self._directory / "tenants.yaml"), metrics)
        tenancy = Tenancy(metrics, salt_secret="bad inputs")
        self.gateway = ServiceGateway(self._config(), self.codec, fleet, LeastTokens(), metrics, tenancy)
        tls = self.certificates and ServerTls(TlsConfig(**self.certificates.server_files), metrics)
        credentials = tls.grpc_credentials() if tls else None
        self.ingress = GrpcIngress(self.gateway, self.settings, self.desk.authenticate, credentials)
        self.port = await self.ingress.start()
        self._stack.push_async_callback(self.ingress.stop)
        page = StatusPage(self.gateway, (), {})
        context = tls.http_context() if tls else None
        self.web = HttpIngress(self.gateway, self.http_settings, page, self.desk.authenticate, context)
        self.http_port = await self.web.start()
        # Else the kernel takes a whole answer off the server's hands, read or not.
        self.web._listener.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._stack.push_async_callback(self.web.stop)

    async def close(self) -> None:
        """Ends everything."""
        await self._stack.aclose()

    @property
    def credentials(self) -> tuple[tuple[str, str], ...]:
        """The metadata of a caller who may ask."""
        return (("authorization", f"Bearer {self.constants['TENANT_A']}"),)

    def channel(self, options: Sequence[tuple[str, object]] = ()) -> grpc.aio.Channel:
        """A proper client's channel of its own."""
        address, options = f"127.0.0.1:{self.port}", (("grpc.use_local_subchannel_pool", 1), *options)
        if self.certificates is None:
            return grpc.aio.insecure_channel(address, options)
        return grpc.aio.secure_channel(address, self.certificates.client_credentials(), options)

    def running(self) -> int:
        """Sequences in all engines."""
        states = [replica.engine.state() for replica in self.replicas]
        return sum(state.running + state.waiting for state in states)

    async def busy_replica(self, tokens: int) -> Replica:
        """The replica that has put out so many tokens."""

        def busy() -> list[Replica]:
            return [r for r in self.replicas if r.engine.state().output_tokens_total >= tokens]

        await until(busy)
        return busy()[0]

    async def check_clean(self) -> None:
        """Fails unless the engines let go of everything in time and a good request is answered."""
        await until(self._is_idle, CLEAN_WITHIN_S)
        self.play.reset()
        self.play.requests.clear()
        if self.needs.is_spent_afterwards:
            return
        async with self.channel() as channel:
            data = await channel.unary_unary("/llama31.v1.ChatService/Chat")(
                good_request(), metadata=self.credentials, timeout=5, wait_for_ready=True
            )
        assert chat_pb.ChatResponse.FromString(data).choices[0].message.parts[0].text == ANSWER
        await until(self._is_idle, CLEAN_WITHIN_S)

    def _is_idle(self) -> bool:
        doors = (self.ingress._guard, self.web)
        return not (self.running() or self.gateway._in_flight or any(door._in_flight for door in doors))

    def _config(self) -> ServiceConfig:
        engine = {"kind": "scripted", "device": "cpu", "kv_cache_bytes": 1 << 20}
        ingress = {"max_requests": self.needs.max_requests}
        tree = {"model": MODEL, "replicas": max(1, self.needs.replicas), "engine": engine, "ingress": ingress}
        return parse_config(tree, "bad inputs")

    def _write_tenants(self) -> dict[str, str | int]:
        """The tenants file; returns what `$...` in a case stands for."""
        keys = {name: make_key() for name in ("A", "A_REVOKED", "A_EXPIRED", "B", "8B_ONLY")}
        limits = {
            name: value
            for name in ("requests_per_minute", "tokens_per_minute", "concurrent_requests")
            if (value := getattr(self.needs, name)) is not None
        }
        tree = {
            "tenants": {
                "a": {"keys": [_row(keys["A"]), _row(keys["A_EXPIRED"], -timedelta(days=1))], **limits},
                "b": {"keys": [_row(keys["B"])]},
                "small": {"keys": [_row(keys["8B_ONLY"])], "models": [MODEL]},
            }
        }
        (self._directory / "tenants.yaml").write_text(yaml.safe_dump(tree))
        sizes = {
            "MAX_MESSAGE_BYTES": self.settings.max_message_bytes,
            "MAX_TEXT_BYTES": self.settings.max_message_bytes,
        }
        return {**{f"TENANT_{name}": key.key for name, key in keys.items()}, **sizes}


def _row(key: NewKey, expires_in: timedelta | None = None) -> dict[str, object]:
    expiry = {} if expires_in is None else {"expires": datetime.now(UTC) + expires_in}
    return {"id": key.id, "sha256": key.sha256, **expiry}


def good_request() -> bytes:
    """A request that every healthy server answers."""
    message = chat_pb.Message(role=chat_pb.ROLE_USER, parts=[chat_pb.Part(text="Say hello.")])
    return chat_pb.ChatRequest(spec=chat_pb.ChatSpec(model=MODEL, messages=[message])).SerializeToString()


class Servers:
    """Servers by what cases need of them. They are shared: one case must not spoil the next."""

    def __init__(self) -> None:
        package = find_spec("llama_models")
        assert package is not None, "the tests need the distribution llama-models (extra: test)"
        assert package.submodule_search_locations is not None
        self._codec = load_codec("llama3.1", Path(package.submodule_search_locations[0]) / "llama3")
        self._servers: dict[Needs, Server] = {}
        self._directory = tempfile.TemporaryDirectory(prefix="llama31-bad-")

    async def get(self, needs: Needs) -> Server:
        """A running server of that kind."""
        if needs not in self._servers:
            directory = Path(tempfile.mkdtemp(dir=self._directory.name))
            server = Server(needs, self._codec, directory)
            await server.start()
            self._servers[needs] = server
        return self._servers[needs]

    async def release(self, server: Server) -> None:
        """Closes a server that its case has spoilt."""
        if server.needs.is_spent_afterwards:
            await self._servers.pop(server.needs).close()

    async def close(self) -> None:
        """Ends all."""
        for server in self._servers.values():
            await server.close()
        self._directory.cleanup()
