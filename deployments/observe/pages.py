"""What does a person see who opens the page of `llama31 observe`: boards, alerts, runbooks, targets?

Rendered here at every visit; no script, nothing from elsewhere.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from deployments.observe.alerts import ALERTS
from deployments.observe.board import Board
from deployments.observe.boards import BOARDS
from deployments.observe.drawing import View, default_view, draw
from deployments.observe.prometheus import SCRAPE_EVERY_S, Prometheus

SPANS_MINUTES = (5, 15, 60, 360)
DEFAULT_MINUTES = 5
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[([^\]]+)\]\((#[a-z0-9]+)\)")
_STRESS = re.compile(r"\*([^*]+)\*")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Pages:
    """The handlers, over one Prometheus."""

    def __init__(self, prometheus: Prometheus, service: str) -> None:
        self._prometheus = prometheus
        self._service = service
        self._boards = {board.uid: board for board in BOARDS}
        self._templates = Environment(
            loader=PackageLoader("deployments.observe", "page"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["marked"] = _marked
        self._style = (resources.files("deployments.observe") / "page" / "style.css").read_text(encoding="utf-8")

    def application(self) -> web.Application:
        """For a runner."""
        application = web.Application(middlewares=[_with_headers])
        application.add_routes(
            [
                web.get("/", self.first),
                web.get("/boards/{uid}", self.board),
                web.get("/alerts", self.alerts),
                web.get("/style.css", self.style),
            ]
        )
        return application

    async def first(self, _: web.Request) -> web.Response:
        """The fleet's board."""
        raise web.HTTPFound(f"/boards/{BOARDS[0].uid}")

    async def style(self, _: web.Request) -> web.Response:
        """The one style sheet."""
        return web.Response(text=self._style, content_type="text/css")

    async def board(self, request: web.Request) -> web.Response:
        """One board, drawn now."""
        board = self._boards.get(request.match_info["uid"])
        if board is None:
            raise web.HTTPNotFound(text=f"no such board; there are {', '.join(self._boards)}")
        view = _view(board, request)
        drawn = iter(await asyncio.gather(*(draw(self._prometheus, panel, view) for panel in board.panels)))
        return await self._render(
            "board.html",
            title=board.title,
            board=board,
            rows={row.title: [next(drawn) for _ in row.panels] for row in board.rows},
            minutes=round(view.span_s / 60),
            spans=SPANS_MINUTES,
            values=await self._values(board),
            chosen=view.variables,
        )

    async def alerts(self, _: web.Request) -> web.Response:
        """Every alert with its state and its runbook, firing ones first."""
        rules = {
            rule["name"]: rule for rule in await self._asked(self._prometheus.rules()) if rule["type"] == "alerting"
        }
        order = {"firing": 0, "pending": 1, "inactive": 2}
        shown = [(alert, rules.get(alert.name, {"state": "unknown", "alerts": []})) for alert in ALERTS]
        shown.sort(key=lambda pair: order.get(pair[1]["state"], 3))
        return await self._render("alerts.html", title="Alerts", alerts=shown)

    async def _render(self, template: str, **values: Any) -> web.Response:
        targets = await self._asked(self._prometheus.targets())
        rules = await self._asked(self._prometheus.rules())
        text = self._templates.get_template(template).render(
            boards=BOARDS,
            service=self._service,
            prometheus=self._prometheus.url,
            targets=targets,
            firing=sum(rule.get("state") == "firing" for rule in rules),
            refresh_s=SCRAPE_EVERY_S * 2,
            **values,
        )
        return web.Response(text=text, content_type="text/html")

    async def _values(self, board: Board) -> dict[str, list[str]]:
        found = [await self._asked(self._prometheus.values(c.series, c.name)) for c in board.choices]
        return {choice.name: values for choice, values in zip(board.choices, found, strict=True)}

    async def _asked(self, question: Awaitable[list[Any]]) -> list[Any]:
        try:
            return await question
        except ValueError as error:
            raise web.HTTPBadGateway(text=str(error)) from None


def _marked(text: str) -> Markup:
    """The little Markdown that runbooks use."""
    html = _CODE.sub(r"<code>\1</code>", str(escape(text)))
    html = _LINK.sub(r'<a href="\2">\1</a>', html)
    return Markup(_STRESS.sub(r"<em>\1</em>", html))


def _view(board: Board, request: web.Request) -> View:
    """What the address asks for; what it names and the board lacks is ignored."""
    text = request.query.get("minutes", "")
    minutes = next((span for span in SPANS_MINUTES if str(span) == text), DEFAULT_MINUTES)
    view = default_view(board, 60.0 * minutes)
    chosen = {name: request.query[name] for name in view.variables if request.query.get(name)}
    return View(view.span_s, {**view.variables, **chosen})


@web.middleware
async def _with_headers(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.headers.update(HEADERS)
        raise
    response.headers.update(HEADERS)
    return response
