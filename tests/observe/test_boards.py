"""Does Grafana's own model read the committed boards back as they were meant?"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from grafana_foundation_sdk.models.dashboard import Dashboard

from deployments.observe.board import Board
from deployments.observe.boards import BOARDS, of_release
from deployments.observe.charts import format_value
from tests.documents import ROOT

pytestmark = pytest.mark.observe

DIRECTORY = ROOT / "k8s" / "chart" / "files" / "dashboards"
COLUMNS = 24


def committed(board: Board) -> Any:
    return json.loads((DIRECTORY / f"{board.uid}.json").read_text())


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_grafanas_model_reads_them(board: Board) -> None:
    read = Dashboard.from_json(committed(board))
    assert (read.uid, read.title) == (board.uid, board.title)
    panels = [panel for panel in committed(board)["panels"] if panel["type"] != "row"]
    assert len(read.panels or []) == len(panels) + len(board.rows)
    assert [panel["title"] for panel in panels] == [panel.title for panel in board.panels]
    assert [[target["expr"] for target in panel["targets"]] for panel in panels] == [
        [query.expr for query in panel.queries] for panel in board.panels
    ]
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels)
    names = {variable["name"] for variable in committed(board)["templating"]["list"]}
    assert names >= {"datasource", *(choice.name for choice in board.choices), *(e.name for e in board.entries)}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_panels_lie_side_by_side(board: Board) -> None:
    cells: Counter[tuple[int, int]] = Counter()
    for panel in committed(board)["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= COLUMNS, panel["title"]
        cells.update((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"]))
    assert max(cells.values()) == 1
    ids = [panel["id"] for panel in committed(board)["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_every_unit_can_be_written(board: Board) -> None:
    assert all(format_value(1.5, panel.unit) for panel in board.panels)
    assert all(panel.meaning.endswith(".") for panel in board.panels)


def test_titles_of_a_board_name_one_panel_each() -> None:
    for board in BOARDS:
        titles = Counter((row.title, panel.title) for row in board.rows for panel in row.panels)
        assert max(titles.values()) == 1


@pytest.mark.parametrize(
    ("query", "narrowed"),
    [
        ("sum(llama31_gpus)", 'sum(llama31_gpus{release=~"$release"})'),
        (
            'rate(vllm:x{}[5m]) > ray_y{a="b"}',
            'rate(vllm:x{release=~"$release"}[5m]) > ray_y{release=~"$release", a="b"}',
        ),
        ("max by (ray_io_cluster) (up)", "max by (ray_io_cluster) (up)"),
        ('count(ALERTS{alertstate="firing"})', 'count(ALERTS{release=~"$release", alertstate="firing"})'),
    ],
)
def test_a_board_shows_the_chosen_releases_alone(query: str, narrowed: str) -> None:
    assert of_release(query) == narrowed


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_every_query_can_be_narrowed_to_a_release(board: Board) -> None:
    assert board.choices[0].name == "release"
    assert all('release=~"$release"' in query.expr for panel in board.panels for query in panel.queries)
