"""Which boards are there? Each shows all releases that one Prometheus knows, or those that the reader chooses."""

from __future__ import annotations

import re
from dataclasses import replace

from deployments.observe.board import Board, Choice, Panel
from deployments.observe.engine_boards import MODEL, REPLICA
from deployments.observe.fleet_board import FLEET
from deployments.observe.use_boards import ENERGY, TENANTS

# Without the chart no series has the label, so everything includes none.
_RELEASE = Choice("release", "llama31_build_info", everything=".*")
# A series with the braces behind it, if there are any.
_SERIES = re.compile(r"\b((?:llama31_|release_model:|vllm:|ray_(?!io_))[\w:]+|ALERTS\b)(?:{([^}]*)})?")


def of_release(expr: str) -> str:
    """The query about the chosen releases alone."""
    matching = f'{_RELEASE.name}=~"${_RELEASE.name}"'
    return _SERIES.sub(lambda found: f"{found[1]}{{{', '.join(filter(None, (matching, found[2])))}}}", expr)


def _narrowed(board: Board) -> Board:
    rows = tuple(replace(row, panels=tuple(_narrowed_panel(panel) for panel in row.panels)) for row in board.rows)
    return replace(board, rows=rows, choices=(_RELEASE, *board.choices))


def _narrowed_panel(panel: Panel) -> Panel:
    return replace(panel, queries=tuple(replace(query, expr=of_release(query.expr)) for query in panel.queries))


BOARDS: tuple[Board, ...] = tuple(_narrowed(board) for board in (FLEET, MODEL, REPLICA, TENANTS, ENERGY))
