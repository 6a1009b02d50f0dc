"""Which HTTP paths does a client meet, on which port, with which limits?

The server is aiohttp's: it runs in the loop of the gRPC door, cancels a request whose client left, and
bounds headers and idle connections; `http_connection.py` adds the one limit that it lacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from urllib.parse import unquote

from aiohttp import web

from deployments.call import Call, Gateway
from deployments.ingress import openai_codec
from deployments.ingress.http_answers import headers, json_answer
from deployments.ingress.http_connection import Connection
from deployments.ingress.http_exchange import Exchange
from deployments.ingress.many_prompts import complete_all
from deployments.ingress.openai_answers import AnswerStream, Json, Kind, WholeAnswer, model_list, model_object, to_json
from deployments.ingress.openai_codec import Wanted
from deployments.ingress.status_page import CONTENT_SECURITY_POLICY, StatusPage
from llama31.chat import Event
from llama31.errors import (
    ConfigInvalid,
    Draining,
    InternalError,
    Llama31Error,
    MethodNotAllowed,
    ModelNotFound,
    NoReadyReplica,
    PathNotFound,
    PortInUse,
)

# Bodies above this are read in a thread, so that one long prompt does not hold up every stream.
DECODE_IN_THREAD_BYTES = 256 * 2**10

_ANSWERING_STATES = ("ready", "degraded")
_LAST_BYTES_S = 0.5
_LOG = logging.getLogger(__name__)

_T = TypeVar("_T")
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
    write_stall_s: float = 30.0
    drain_s: float = 30.0
    max_body_bytes: int = 16 * 2**20


class HttpIngress:
    """The OpenAI-compatible server, with the status page, in front of a gateway."""

    def __init__(self, gateway: Gateway, settings: HttpSettings, page: StatusPage) -> None:
        self._gateway = gateway
        self._settings = settings
        self._page = page
        self._began_s = int(time.time())
        self._draining = False
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
                lambda: Connection(server, settings.headers_s, settings.keepalive_s),
                settings.host,
                settings.port,
                reuse_port=settings.so_reuseport,
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(settings.host, settings.port, "--http-port") from None
            raise ConfigInvalid(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
        self._server = server
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def drain(self, grace_s: float | None = None) -> bool:
        """Refuses new requests, keeps health answering; returns whether the others ended within the grace."""
        self._draining = True
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
            "/": {"GET": partial(self._html, self._page.whole)},
            "/fleet": {"GET": partial(self._html, self._page.fleet)},
        }

    def _method(self, request: web.BaseRequest) -> Method:
        """The method for exactly this path: no other spelling of it. Raises: PathNotFound, MethodNotAllowed."""
        path = request.raw_path.partition("?")[0]
        found = self._routes.get(path)
        if found is None and path.startswith("/v1/models/"):
            found = {"GET": partial(self._model, unquote(path.removeprefix("/v1/models/")))}
        if found is None:
            raise PathNotFound()
        method = found.get("GET" if request.method == "HEAD" else request.method)
        if method is None:
            raise MethodNotAllowed(tuple(found))
        return method

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Every request: its method, and whatever goes wrong as a clean status."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.request_began()
        settings = self._settings
        exchange = Exchange(request, settings.max_body_bytes, settings.body_s, settings.write_stall_s)
        try:
            response = await self._method(request)(request, exchange)
        except Llama31Error as error:
            response = exchange.error(error)
        except ConnectionError:
            raise
        except Exception:
            _LOG.exception("request %s failed", exchange.request_id)
            response = exchange.error(InternalError())
        finally:
            connection.request_ended()
        if self._draining:
            response.force_close()
        return response

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """What a drain waits for. Raises: Draining."""
        if self._draining:
            raise Draining()
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    async def _chat(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        with self._counted():
            call = exchange.call()
            asked, wanted = await _decoded(openai_codec.decode_chat, await exchange.body())
            return await self._generate("chat", self._gateway.chat(asked, call), exchange, call, wanted)

    async def _complete(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        with self._counted():
            call = exchange.call()
            asked, wanted = await _decoded(openai_codec.decode_completion, await exchange.body())
            events = complete_all(self._gateway, asked, call)
            return await self._generate("completion", events, exchange, call, wanted)

    async def _generate(
        self, kind: Kind, events: AsyncIterator[Event], exchange: Exchange, call: Call, wanted: Wanted
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
        return _json(model_list(self._gateway.models(), self._began_s), exchange)

    async def _model(self, name: str, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        models = self._gateway.models()
        model = next((m for m in models if m.name == name), None)
        if model is None:
            raise ModelNotFound(name, tuple(m.name for m in models))
        return _json(model_object(model, self._began_s), exchange)

    async def _tokenize(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        with self._counted():
            models = self._gateway.models()
            name, text, special = openai_codec.decode_tokenize(await exchange.body(), models[0].name)
            # Megabytes of text take long to encode: not on the loop that writes everybody's tokens.
            ids = await asyncio.to_thread(self._gateway.tokenize, name, text, special)
            limit = next((m.context_tokens for m in models if m.name == name), None)
            return _json({"count": len(ids), "max_model_len": limit, "tokens": ids, "token_strs": None}, exchange)

    async def _detokenize(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        with self._counted():
            name, ids = openai_codec.decode_detokenize(await exchange.body(), self._gateway.models()[0].name)
            text = await asyncio.to_thread(self._gateway.detokenize, name, ids)
            return _json({"prompt": text.decode("utf-8", "replace")}, exchange)

    async def _health(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        """The process is alive, also while it drains."""
        return _json({"status": "ok"}, exchange)

    async def _ready(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        """Some model can answer now. Raises: Draining, NoReadyReplica."""
        if self._draining:
            raise Draining()
        models = self._gateway.models()
        if not any(model.state in _ANSWERING_STATES for model in models):
            raise NoReadyReplica(models[0].name if models else "", models[0].state if models else "unavailable")
        return _json({"status": "ready"}, exchange)

    async def _html(
        self, render: Callable[[], str], request: web.BaseRequest, exchange: Exchange
    ) -> web.StreamResponse:
        found = headers(
            exchange.request_id,
            content_type="text/html; charset=utf-8",
            content_security_policy=CONTENT_SECURITY_POLICY,
            referrer_policy="no-referrer",
        )
        return web.Response(body=render().encode("utf-8"), headers=found)


async def _decoded(decode: Callable[[bytes], _T], body: bytes) -> _T:
    if len(body) > DECODE_IN_THREAD_BYTES:
        return await asyncio.to_thread(decode, body)
    return decode(body)


def _json(value: Json, exchange: Exchange) -> web.Response:
    return json_answer(to_json(value).encode("ascii"), exchange.request_id)
