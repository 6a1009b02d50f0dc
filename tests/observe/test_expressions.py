"""Does every query of the boards and alerts parse, and does it name only series and labels that are exported?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest

from deployments.observe.alerts import GROUPS
from deployments.observe.boards import BOARDS
from deployments.observe.drawing import default_view
from tests.observe.exported import FOREIGN, series

pytestmark = pytest.mark.observe

EXPORTED = series()
LABEL = re.compile(r"{{\s*(\w+)\s*}}")
ALERT_LABEL = re.compile(r"\$labels\.(\w+)")
BOARD_QUERIES = [
    pytest.param(default_view(board, 300).fill(query.expr), query.legend, id=f"{board.uid}: {panel.title}")
    for board in BOARDS
    for panel in board.panels
    for query in panel.queries
]
RULES = [
    pytest.param(rule.expr, id=getattr(rule, "record", None) or getattr(rule, "name", ""))
    for group in GROUPS
    for rule in (*group.recordings, *group.alerts)
]


def nodes(tree: Any) -> Iterator[Any]:
    """The expression and everything in it."""
    yield tree
    for name in ("lhs", "rhs", "expr", "param", "vector_selector", "args"):
        inner = getattr(tree, name, None)
        if isinstance(inner, list):
            for one in inner:
                yield from nodes(one)
        elif inner is not None and not isinstance(inner, str):
            yield from nodes(inner)


def selectors(expr: str) -> list[promql_parser.VectorSelector]:
    found = nodes(promql_parser.parse(expr))
    return [node for node in found if isinstance(node, promql_parser.VectorSelector)]


def grouped(expr: str) -> set[str]:
    """Labels that aggregations and joins name."""
    return {
        label.strip()
        for names in re.findall(r"\b(?:by|on|ignoring|group_left)\s*\(([^)]*)\)", expr)
        for label in names.split(",")
        if label.strip()
    }


def check(expr: str) -> set[str]:
    """Every label that the series of the expression may have."""
    found = selectors(expr)
    # `vector(0)` and `time()` alone would name nothing.
    assert found
    assert {selector.name for selector in found} <= set(EXPORTED)
    for selector in found:
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert matched <= EXPORTED[selector.name], f"{selector.name} has no such labels"
    labels = frozenset().union(*(EXPORTED[selector.name] for selector in found))
    assert grouped(expr) <= labels
    return set(labels)


@pytest.mark.parametrize(("expr", "legend"), BOARD_QUERIES)
def test_queries_of_boards_name_what_is_exported(expr: str, legend: str) -> None:
    assert "$" not in expr
    assert set(LABEL.findall(legend)) <= check(expr)


@pytest.mark.parametrize("expr", RULES)
def test_rules_name_what_is_exported(expr: str) -> None:
    check(expr)


@pytest.mark.parametrize("expr", RULES)
def test_rules_keep_releases_apart(expr: str) -> None:
    """Else a sick release hides behind a well one of the same model."""
    for names in re.findall(r"\b(?:by|on)\s*\(([^)]+)\)", expr):
        assert {"release", "namespace"} & {label.strip() for label in names.split(",")}, names


def test_texts_of_alerts_name_labels_that_their_series_have() -> None:
    for group in GROUPS:
        for alert in group.alerts:
            assert set(ALERT_LABEL.findall(alert.summary)) <= check(alert.expr), alert.name


def test_variables_of_boards_are_labels_of_their_series() -> None:
    for board in BOARDS:
        assert all(choice.name in EXPORTED[choice.series] for choice in board.choices)


def test_nothing_foreign_is_listed_in_vain() -> None:
    named = {selector.name for query in BOARD_QUERIES for selector in selectors(str(query.values[0]))}
    assert named >= set(FOREIGN)


@pytest.mark.parametrize("wrong", ["sum by (model (x)", "llama31_no_such_thing > 0", 'up{modell="x"}'])
def test_the_check_finds_mistakes(wrong: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check(wrong)
