"""Which HTTP paths does a client meet, on which port, with which limits?

The server is aiohttp's: it runs in the loop of the gRPC door, cancels a request whose client left, and
bounds headers and idle connections; `http_connection.py` adds the one limit that it lacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from urllib.parse import unquote

from aiohttp import web

from deployments.call import NO_METHOD, Call, CountCall, EventStream, Gateway, ModelStatus, not_counted
from deployments.config_sections import LOOPBACK
from deployments.ingress import openai_codec
from deployments.ingress.decoding import decoded
from deployments.ingress.echo import echoed
from deployments.ingress.foreign_pages import refuse_foreign_pages
from deployments.ingress.granted import find_model, granted_models
from deployments.ingress.health import ANSWERING_STATES
from deployments.ingress.http_answers import headers, json_answer
from deployments.ingress.http_connection import Connection
from deployments.ingress.http_exchange import Exchange
from deployments.ingress.many_prompts import complete_all
from deployments.ingress.openai_answers import AnswerStream, Json, Kind, WholeAnswer, model_list, model_object, to_json
from deployments.ingress.openai_codec import Wanted
from deployments.ingress.stalled_writes import StalledWrites
from deployments.ingress.status_page import CONTENT_SECURITY_POLICY, StatusPage
from deployments.ingress.traced import traced_exchange
from deployments.tenant import Authenticate, Tenant, everybody_is_local
from deployments.tracing import Tracing
from llama31.errors import (
    ConfigInvalid,
    Draining,
    InternalError,
    Llama31Error,
    MethodNotAllowed,
    NoReadyReplica,
    PathNotFound,
    PortInUse,
)

_MODEL_PATH = "/v1/models/"
# What takes work; probes and pages would drown it.
_TRACED_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"})
# Their senders name a host as they like, and they tell nothing about anybody.
_PROBES = frozenset({"/health", "/healthz", "/ready"})
_LAST_BYTES_S = 0.1
_LOG = logging.getLogger(__name__)

Method = Callable[[web.BaseRequest, Exchange], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """`port` 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = 8000
    so_reuseport: bool = False
    headers_s: float = 10.0
    body_s: float = 30.0
    # Longer than the idle time of the usual proxies, so that none of them reuses a connection that is closed.
    keepalive_s: float = 75.0
    backlog: int = 2048
    # How long an answered connection is read on, so that a client in the middle of its body hears the answer.
    linger_s: float = 2.0
    write_stall_s: float = 30.0
    drain_s: float = 30.0
    max_body_bytes: int = 16 * 2**20


class HttpIngress:
    """The OpenAI-compatible server, with the status page, in front of a gateway."""

    def __init__(
        self,
        gateway: Gateway,
        settings: HttpSettings,
        page: StatusPage,
        authenticate: Authenticate = everybody_is_local,
        tls: ssl.SSLContext | None = None,
        tracing: Tracing | None = None,
        count_call: CountCall = not_counted,
    ) -> None:
        """Without `tls` the port speaks plaintext."""
        self._count_call = count_call
        self._tracing = tracing
        self._authenticate = authenticate
        self._is_local = authenticate is everybody_is_local and settings.host in LOOPBACK
        self._tls = tls
        self._gateway = gateway
        self._settings = settings
        self._page = page
        self._began_s = int(time.time())
        self._draining = False
        self._writes = StalledWrites(settings.write_stall_s)
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._server: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self._routes = self._all_routes()

    async def start(self) -> int:
        """Listens; returns the port. Raises: PortInUse, ConfigInvalid for an address that is not ours."""
        settings = self._settings
        server = web.Server(self._answer, handler_cancellation=True)
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                lambda: Connection(
                    server, settings.headers_s, settings.keepalive_s, settings.linger_s, self._count_call
                ),
                settings.host,
                settings.port,
                reuse_port=settings.so_reuseport,
                # Clients that all come at once should be refused in words, not by lost packets.
                backlog=settings.backlog,
                ssl=self._tls,
                ssl_handshake_timeout=settings.headers_s if self._tls else None,
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(settings.host, settings.port, "--http-port") from None
            raise ConfigInvalid(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
        self._server = server
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    @property
    def sent_bytes(self) -> int:
        """Of all answers, since the start."""
        return self._writes.sent_bytes

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused."""
        return self._draining

    async def drain(self, grace_s: float | None = None) -> bool:
        """Refuses new requests, keeps health answering; returns whether the others ended within the grace.

        A port that is shared goes to the other processes at once.
        """
        self._draining = True
        if self._settings.so_reuseport and self._listener is not None:
            self._listener.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_s if grace_s is None else grace_s):
                await self._idle.wait()
        return self._in_flight == 0

    async def stop(self) -> None:
        """Closes the port and cancels what still runs; idempotent."""
        self._draining = True
        if self._listener is None or self._server is None:
            return
        self._listener.close()
        await self._server.shutdown(_LAST_BYTES_S)
        self._listener = self._server = None

    def _all_routes(self) -> Mapping[str, Mapping[str, Method]]:
        return {
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/completions": {"POST": self._complete},
            "/v1/models": {"GET": self._models},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/health": {"GET": self._health},
            "/healthz": {"GET": self._health},
            "/ready": {"GET": self._ready},
            "/": {"GET": self._status_page},
            "/fleet": {"GET": self._status_fleet},
        }

    def _method(self, request: web.BaseRequest) -> Method:
        """The method for exactly this path: no other spelling of it. Raises: PathNotFound, MethodNotAllowed."""
        path = _path(request)
        found = self._routes.get(path)
        if found is None and path.startswith(_MODEL_PATH) and path != _MODEL_PATH:
            found = {"GET": partial(self._model, unquote(path.removeprefix(_MODEL_PATH)))}
        if found is None:
            raise PathNotFound("nothing is served under this path")
        method = found.get("GET" if request.method == "HEAD" else request.method)
        if method is None:
            raise MethodNotAllowed(tuple(found))
        return method

    def _counted_as(self, request: web.BaseRequest) -> str:
        """The path in the metrics: one of a few, whatever clients ask for."""
        path = _path(request)
        if path in self._routes:
            return path
        return f"{_MODEL_PATH}{{model}}" if path.startswith(_MODEL_PATH) else NO_METHOD

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Every request, with a span where that is wanted."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.request_began()
        path = _path(request)
        try:
            with self._counted():
                if self._tracing is None or path not in _TRACED_PATHS:
                    return await self._outcome(request)
                return await traced_exchange(request, path, self._tracing, self._outcome)
        finally:
            connection.request_ended()

    async def _outcome(self, request: web.BaseRequest) -> web.StreamResponse:
        """What the path's method answers, and whatever goes wrong as a clean status; written when this returns."""
        exchange = Exchange(request, self._settings.max_body_bytes, self._settings.body_s, self._writes)
        try:
            response = await self._result(request, exchange)
            if self._draining:
                response.force_close()
            return await exchange.send(response)
        except (asyncio.CancelledError, ConnectionError):
            exchange.closed_early()
            raise
        finally:
            self._count_call(self._counted_as(request), exchange.outcome)

    async def _result(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        """The answer, or the error as one. Raises: ConnectionError if the client went away or does not read."""
        try:
            if self._is_local and _path(request) not in _PROBES:
                refuse_foreign_pages(request)
            return await self._method(request)(request, exchange)
        except Llama31Error as error:
            return exchange.error(error)
        except ConnectionError:
            raise
        except Exception:
            _LOG.exception("request %s failed", exchange.request_id)
            return exchange.error(InternalError())

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """What a drain waits for: every answer until it is written."""
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    def _check_stays(self) -> None:
        """Raises: Draining."""
        if self._draining:
            raise Draining()

    async def _chat(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        self._check_stays()
        call = exchange.call(self._authenticate)
        asked, wanted = await decoded(openai_codec.decode_chat, await exchange.body())
        return await self._generate("chat", self._gateway.chat(asked, call), exchange, call, wanted)

    async def _complete(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        self._check_stays()
        call = exchange.call(self._authenticate)
        asked, wanted = await decoded(openai_codec.decode_completion, await exchange.body())
        complete = partial(echoed, self._gateway) if wanted.echo else self._gateway.complete
        events = complete_all(self._gateway, complete, asked, call)
        return await self._generate("completion", events, exchange, call, wanted)

    async def _generate(
        self, kind: Kind, events: EventStream, exchange: Exchange, call: Call, wanted: Wanted
    ) -> web.StreamResponse:
        def token_bytes(token_id: int) -> bytes:
            return self._gateway.detokenize(wanted.model, (token_id,))

        try:
            if wanted.stream:
                stream = AnswerStream(kind, wanted.choices, wanted.include_usage, token_bytes)
                return await exchange.answer_stream(events, stream, call, wanted)
            return await exchange.answer_whole(events, WholeAnswer(kind, token_bytes), call)
        except Llama31Error as error:
            return exchange.error(error, wanted)

    async def _models(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        tenant = exchange.call(self._authenticate).tenant
        return _json(model_list(granted_models(self._gateway, tenant), self._began_s), exchange)

    async def _model(self, name: str, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        tenant = exchange.call(self._authenticate).tenant
        return _json(model_object(self._find(name, tenant), self._began_s), exchange)

    async def _tokenize(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        self._check_stays()
        tenant = exchange.call(self._authenticate).tenant
        body = await exchange.body()
        async with self._gateway.visit(tenant):
            name, text, special = await decoded(openai_codec.decode_tokenize, body)
            model = self._find(name, tenant)

            def encode() -> bytes:
                ids = self._gateway.tokenize(model.name, text, special)
                answer = {"count": len(ids), "max_model_len": model.context_tokens, "tokens": ids, "token_strs": None}
                return to_json(answer).encode("ascii")

            # Much text takes long to encode: not on the loop that writes everybody's tokens.
            return json_answer(await asyncio.to_thread(encode), exchange.request_id)

    async def _detokenize(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        self._check_stays()
        tenant = exchange.call(self._authenticate).tenant
        body = await exchange.body()
        async with self._gateway.visit(tenant):
            name, ids = await decoded(openai_codec.decode_detokenize, body)
            model = self._find(name, tenant)

            def encode() -> bytes:
                text = self._gateway.detokenize(model.name, ids).decode("utf-8", "replace")
                return to_json({"prompt": text}).encode("ascii")

            return json_answer(await asyncio.to_thread(encode), exchange.request_id)

    def _find(self, name: str, tenant: Tenant) -> ModelStatus:
        """The model of this name, or the first one for no name. Raises: ModelNotFound."""
        granted = granted_models(self._gateway, tenant)
        return granted[0] if granted and not name else find_model(self._gateway, tenant, name)

    async def _health(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        """The process is alive, also while it drains."""
        return _json({"status": "ok"}, exchange)

    async def _ready(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        """Some model can answer now. Raises: Draining, NoReadyReplica."""
        self._check_stays()
        models = self._gateway.models()
        if not any(model.state in ANSWERING_STATES for model in models):
            raise NoReadyReplica(models[0].name if models else "", models[0].state if models else "unavailable")
        return _json({"status": "ready"}, exchange)

    async def _status_page(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        """Browsers send no key with a page: where one is asked for, the fleet is fetched with it later."""
        return _html(self._page.whole(asks_for_key=self._authenticate is not everybody_is_local), exchange)

    async def _status_fleet(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        tenant = exchange.call(self._authenticate).tenant
        return _html(self._page.fleet(tenant), exchange)


def _path(request: web.BaseRequest) -> str:
    return request.raw_path.partition("?")[0]


def _json(value: Json, exchange: Exchange) -> web.Response:
    return json_answer(to_json(value).encode("ascii"), exchange.request_id)


def _html(text: str, exchange: Exchange) -> web.Response:
    found = headers(
        exchange.request_id,
        content_type="text/html; charset=utf-8",
        content_security_policy=CONTENT_SECURITY_POLICY,
        referrer_policy="no-referrer",
    )
    return web.Response(body=text.encode("utf-8"), headers=found)
