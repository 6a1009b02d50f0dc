"""Which gRPC services does a client meet, on which port, with which transport limits?"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc

from deployments.call import CountCall, EventStream, Gateway, ModelStatus, not_counted
from deployments.ingress import health, oip, oip_codec, proto_answers, proto_codec, reflection
from deployments.ingress.complete_many import CompleteMany
from deployments.ingress.decoding import decoded
from deployments.ingress.granted import find_model, granted_models
from deployments.ingress.interceptors import Rpc, RpcGuard
from deployments.ingress.traced import traced_rpc
from deployments.tenant import Authenticate, everybody_is_local
from deployments.tracing import Tracing
from llama31.chat import Completed, Event, Started
from llama31.errors import ConfigInvalid, InternalError, InvalidRequest, ModelNotFound, PortInUse

CHAT_SERVICE = "llama31.v1.ChatService"
COMPLETION_SERVICE = "llama31.v1.CompletionService"
MODEL_SERVICE = "llama31.v1.ModelService"

_DEFAULT_PAGE_SIZE = 100
_MAX_PAGE_SIZE = 1000
_PROBES = frozenset({"Check", "Watch", "ServerLive", "ServerReady", "ModelReady"})
_LAST_BYTES_S = 0.5


@dataclass(frozen=True, slots=True)
class IngressSettings:
    """`port` 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = 9000
    so_reuseport: bool = False
    reflection: bool = True
    write_stall_s: float = 30.0
    request_wait_s: float = 10.0
    handshake_s: float = 20.0
    connection_idle_s: float = 300.0
    drain_s: float = 30.0
    max_message_bytes: int = 16 * 2**20
    max_metadata_bytes: int = 16 * 2**10
    max_streams_per_connection: int = 1024
    keepalive_time_s: float = 30.0
    keepalive_timeout_s: float = 10.0


class GrpcIngress:
    """The public gRPC server in front of a gateway."""

    def __init__(
        self,
        gateway: Gateway,
        settings: IngressSettings,
        authenticate: Authenticate = everybody_is_local,
        credentials: grpc.ServerCredentials | None = None,
        tracing: Tracing | None = None,
        count_call: CountCall = not_counted,
    ) -> None:
        """Without `credentials` the port speaks plaintext."""
        self._count_call = count_call
        self._tracing = tracing
        self._gateway = gateway
        self._settings = settings
        self._authenticate = authenticate
        self._credentials = credentials
        self._guard: RpcGuard | None = None
        self._server: grpc.aio.Server | None = None
        self._leaving: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listens; returns the port. Raises: PortInUse, ConfigInvalid for an address that is not ours."""
        settings = self._settings
        _probe(settings.host, settings.port, settings.so_reuseport)
        self._guard = RpcGuard(settings.write_stall_s, settings.request_wait_s, self._authenticate, self._count_call)
        server = grpc.aio.server(options=server_options(settings))
        services = _services(self._gateway, self._guard)
        if self._tracing is not None:
            services = _traced(services, self._tracing)
        if settings.reflection:
            services |= reflection.service(tuple(services), self._guard)
        for name, handlers in services.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            if self._credentials is None:
                port = server.add_insecure_port(f"{host}:{settings.port}")
            else:
                port = server.add_secure_port(f"{host}:{settings.port}", self._credentials)
        except RuntimeError:
            await server.stop(None)
            raise PortInUse(settings.host, settings.port, "--port") from None
        await server.start()
        self._server = server
        return port

    @property
    def sent_bytes(self) -> int:
        """Of all answers, since the start."""
        return self._guard.sent_bytes if self._guard else 0

    @property
    def is_draining(self) -> bool:
        """Whether new calls are refused."""
        return self._guard is not None and self._guard.draining.is_set()

    async def drain(self, grace_s: float | None = None) -> bool:
        """Refuses new calls, keeps health answering; returns whether the others ended within the grace.

        A port that is shared goes to the other processes at once: clients are told to connect anew (GOAWAY).
        """
        if self._guard is None or self._server is None:
            return True
        grace_s = self._settings.drain_s if grace_s is None else grace_s
        self._guard.draining.set()
        if self._settings.so_reuseport and self._leaving is None:
            self._leaving = asyncio.create_task(self._server.stop(grace_s + _LAST_BYTES_S))
        return await self._guard.drain(grace_s)

    async def stop(self) -> None:
        """Closes the port and cancels what still runs; idempotent."""
        if self._server is None or self._guard is None:
            return
        self._guard.draining.set()
        await self._server.stop(_LAST_BYTES_S)
        self._server = None


def server_options(settings: IngressSettings) -> list[tuple[str, int]]:
    """gRPC core ignores unknown keys without a word: each name here was seen to act.

    `min_ping_interval_without_data_ms` has no "recv" in it: the widely copied other spelling does nothing.
    """
    return [
        ("grpc.so_reuseport", int(settings.so_reuseport)),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        # Top-20 log-probabilities of a long answer are larger than any request.
        ("grpc.max_send_message_length", 4 * settings.max_message_bytes),
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
        # From the connection's first byte to the client's first HTTP/2 frame; gRPC's default is two minutes.
        ("grpc.server_handshake_timeout_ms", round(settings.handshake_s * 1000)),
        # A connection without calls is closed; clients open another with their next call.
        ("grpc.max_connection_idle_ms", round(settings.connection_idle_s * 1000)),
        # Above its default of 1,000 calls that we have not seen yet, core cancels some of them without a word:
        # clients should rather hear from us that there is too much to do.
        ("grpc.server.max_pending_requests", 4096),
        ("grpc.server.max_pending_requests_hard_limit", 8192),
        # A client may ping while a long prefill sends nothing, but not flood: no keepalive is faster than this.
        ("grpc.http2.min_ping_interval_without_data_ms", 500),
        ("grpc.http2.max_ping_strikes", 10),
        ("grpc.keepalive_permit_without_calls", 1),
        # Finds dead clients; without `ping_timeout_ms` the answer to a ping may take a minute.
        ("grpc.keepalive_time_ms", round(settings.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout_s * 1000)),
        ("grpc.http2.ping_timeout_ms", round(settings.keepalive_timeout_s * 1000)),
    ]


Handlers = dict[str, "grpc.RpcMethodHandler[Any, Any]"]


def _services(gateway: Gateway, guard: RpcGuard) -> dict[str, Handlers]:
    generation = _Generation(gateway)
    models = _Models(gateway)
    answering = (CHAT_SERVICE, COMPLETION_SERVICE, oip.SERVICE)
    health_service = health.HealthService(gateway, guard.draining, (MODEL_SERVICE,), answering)
    return {
        CHAT_SERVICE: {
            "Chat": guard.unary("Chat", generation.chat, prompt_field="spec.messages"),
            "StreamChat": guard.stream("StreamChat", generation.stream_chat, prompt_field="spec.messages"),
        },
        COMPLETION_SERVICE: {
            "Complete": guard.unary("Complete", generation.complete),
            "StreamComplete": guard.stream("StreamComplete", generation.stream_complete),
            "CompleteMany": guard.duplex("CompleteMany", CompleteMany(gateway, guard.draining).run),
        },
        MODEL_SERVICE: {
            "ListModels": guard.unary("ListModels", models.list_models),
            "GetModel": guard.unary("GetModel", models.get_model),
            "Tokenize": guard.unary("Tokenize", models.tokenize),
            "Detokenize": guard.unary("Detokenize", models.detokenize),
        },
        oip.SERVICE: _inference(oip.InferenceService(gateway, guard.draining), guard),
        health.SERVICE: {
            "Check": guard.unary("Check", health_service.check, is_health=True),
            "Watch": guard.stream("Watch", health_service.watch, is_health=True),
        },
    }


def _traced(services: dict[str, Handlers], tracing: Tracing) -> dict[str, Handlers]:
    """Every method but those that only ask whether we are there."""
    return {
        service: {
            name: handler if name in _PROBES else traced_rpc(handler, service, name, tracing)
            for name, handler in handlers.items()
        }
        for service, handlers in services.items()
    }


def _inference(service: oip.InferenceService, guard: RpcGuard) -> Handlers:
    return {
        "ServerLive": guard.unary("ServerLive", service.server_live, is_health=True),
        "ServerReady": guard.unary("ServerReady", service.server_ready, is_health=True),
        "ModelReady": guard.unary("ModelReady", service.model_ready, is_health=True),
        "ServerMetadata": guard.unary("ServerMetadata", service.server_metadata),
        "ModelMetadata": guard.unary("ModelMetadata", service.model_metadata),
        "ModelInfer": guard.unary("ModelInfer", service.infer, prompt_field=oip_codec.PROMPTS),
        "ModelStreamInfer": guard.duplex("ModelStreamInfer", service.stream_infer),
    }


class _Generation:
    """ChatService and CompletionService."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def chat(self, request: bytes, rpc: Rpc) -> bytes:
        events = self._gateway.chat(await decoded(proto_codec.decode_chat, request), rpc.call)
        return (await _collect(events, rpc)).encode_chat()

    async def stream_chat(self, request: bytes, rpc: Rpc) -> None:
        events = self._gateway.chat(await decoded(proto_codec.decode_stream_chat, request), rpc.call)
        await _forward(events, proto_answers.encode_chat_event, rpc)

    async def complete(self, request: bytes, rpc: Rpc) -> bytes:
        events = self._gateway.complete(await decoded(proto_codec.decode_complete, request), rpc.call)
        return (await _collect(events, rpc)).encode_completion()

    async def stream_complete(self, request: bytes, rpc: Rpc) -> None:
        events = self._gateway.complete(await decoded(proto_codec.decode_stream_complete, request), rpc.call)
        await _forward(events, proto_answers.encode_completion_event, rpc)


async def _collect(events: EventStream, rpc: Rpc) -> proto_answers.Answer:
    answer = proto_answers.Answer()
    async with aclosing(events):
        async for event in events:
            answer.take(event)
    await rpc.send_headers(answer.started)
    return answer


async def _forward(events: EventStream, encode: Callable[[int, Event], bytes], rpc: Rpc) -> None:
    """Writes event by event, with nothing between reader and writer that could fill up.

    Every way out, a cancelled caller and a stalled one included, closes `events`, which frees the engine.
    """
    sequence = 0
    event: Event | None = None
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Started):
                await rpc.send_headers(event)
            sequence += 1
            await rpc.write(encode(sequence, event))
    if not isinstance(event, Completed):
        raise InternalError("the answer ended without a Completed event")


class _Models:
    """ModelService."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def list_models(self, request: bytes, rpc: Rpc) -> bytes:
        page_size, page_token = proto_codec.decode_list_models(request)
        models = granted_models(self._gateway, rpc.call.tenant)
        first = _page_start(models, page_token)
        end = first + min(page_size or _DEFAULT_PAGE_SIZE, _MAX_PAGE_SIZE)
        return proto_answers.encode_list_models(models[first:end], models[end].name if end < len(models) else "")

    async def get_model(self, request: bytes, rpc: Rpc) -> bytes:
        name = proto_codec.decode_get_model(request)
        return proto_answers.encode_get_model(find_model(self._gateway, rpc.call.tenant, name))

    async def tokenize(self, request: bytes, rpc: Rpc) -> bytes:
        async with self._gateway.visit(rpc.call.tenant):
            model, text, add_special_tokens = await decoded(proto_codec.decode_tokenize, request)
            self._check_grant(model, rpc)

            def encode() -> bytes:
                return proto_answers.encode_tokenize(self._gateway.tokenize(model, text, add_special_tokens))

            # Much text takes long to encode: not on the loop that writes everybody's tokens.
            return await asyncio.to_thread(encode)

    async def detokenize(self, request: bytes, rpc: Rpc) -> bytes:
        async with self._gateway.visit(rpc.call.tenant):
            model, ids = await decoded(proto_codec.decode_detokenize, request)
            self._check_grant(model, rpc)

            def encode() -> bytes:
                return proto_answers.encode_detokenize(self._gateway.detokenize(model, ids))

            return await asyncio.to_thread(encode)

    def _check_grant(self, model: str, rpc: Rpc) -> None:
        if not rpc.call.tenant.may_use(model):
            raise ModelNotFound(model, tuple(m.name for m in granted_models(self._gateway, rpc.call.tenant)))


def _page_start(models: tuple[ModelStatus, ...], page_token: str) -> int:
    """A page token is the name of the model that the page begins with."""
    if not page_token:
        return 0
    found = next((i for i, m in enumerate(models) if m.name == page_token), None)
    if found is None:
        raise InvalidRequest("page_token", "is none that ListModels gave; begin again without it")
    return found


def _probe(host: str, port: int, reuse_port: bool) -> None:
    """Binds and lets go, because gRPC says neither why it could not nor that it took half of a host name."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in addresses:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if reuse_port else socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(host, port, "--port") from None
        raise ConfigInvalid(f"cannot listen on {host}:{port}: {error.strerror}") from None
