"""Does a line serve those that can still be on time first, and everybody in the end?"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.policies.late_line import LATE_SHARE, USED_SHARE_OF_SLO, LateLine

SLO_S = 2.0


@dataclass
class Item:
    name: int
    arrived_s: float
    prompt_tokens: int = 1
    is_gone: bool = False
    is_late: bool = False


def work(item: Item) -> float:
    return float(item.prompt_tokens)


def enter(line: LateLine[Item]) -> Item:
    item = line.head(work)
    item.is_gone = True
    line.trim()
    line.entered(item, work(item))
    return item


def filled(arrivals: Sequence[float], slo_s: float = SLO_S) -> LateLine[Item]:
    line = LateLine[Item](slo_s)
    for name, arrived_s in enumerate(arrivals):
        line.add(Item(name, arrived_s))
    return line


def at_once(prompt_tokens: int) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("slo_s", "now_s", "first_token_s", "order"),
    [
        (math.inf, 1e6, 0.0, [0, 1, 2, 3]),
        (SLO_S, 1.7, 0.0, [0, 1, 2, 3]),
        # The first has waited for more than 0.9 x 2 s.
        (SLO_S, 1.9, 0.0, [1, 2, 3, 0]),
        # So has the second, with the first token that is still to come.
        (SLO_S, 1.9, 0.5, [2, 3, 0, 1]),
        (SLO_S, 1e6, 0.0, [0, 1, 2, 3]),
    ],
)
def test_the_late_wait_behind_the_others(slo_s: float, now_s: float, first_token_s: float, order: list[int]) -> None:
    line = filled([0.0, 0.5, 1.0, 1.5], slo_s)
    line.sort(now_s, lambda _: first_token_s)
    assert line.tail.name == order[-1]
    assert line.oldest.name == 0
    assert [enter(line).name for _ in range(4)] == order
    assert not line


def test_one_that_waits_alone_is_next_and_no_line_of_its_own() -> None:
    line = filled([0.0])
    line.sort(1e6, at_once)
    assert not line.head(work).is_late


def test_the_late_get_a_tenth_while_others_come() -> None:
    line = filled([0.0] * 1000)
    entered: list[Item] = []
    for step in range(2000):
        now_s = 10.0 + step
        line.add(Item(1000 + step, now_s))
        line.sort(now_s, at_once)
        entered.append(enter(line))
    assert sum(item.is_late for item in entered[:1900]) / 1900 == pytest.approx(LATE_SHARE, abs=0.01)


ITEMS = st.lists(st.tuples(st.floats(0, 3), st.integers(1, 500)), min_size=1, max_size=30)


@given(before=ITEMS, meanwhile=ITEMS, victim=st.integers(1, 5000), gone=st.randoms())
@settings(max_examples=50, deadline=None)
def test_no_starvation(
    before: list[tuple[float, int]], meanwhile: list[tuple[float, int]], victim: int, gone: random.Random
) -> None:
    """Whatever comes without end: a late request enters after nine times its work and that of the late before it."""
    line = LateLine[Item](SLO_S)
    waiting = [Item(name, 0.0, tokens) for name, (_, tokens) in enumerate(before)]
    waiting.append(Item(-1, 0.0, victim))
    for item in waiting:
        line.add(item)
    passed = sum(map(work, waiting))
    most = (1 / LATE_SHARE - 1) * passed + max(tokens for _, tokens in meanwhile) * len(waiting)
    now_s, step, so_far = 5.0, 0, 0.0
    while True:
        gap_s, tokens = meanwhile[step % len(meanwhile)]
        now_s, step = now_s + gap_s / 3, step + 1
        line.add(Item(step, now_s, tokens))
        if gone.random() < 0.1:
            quitter = gone.choice(waiting[:-1] or [Item(0, 0.0)])
            quitter.is_gone = True
            line.trim()
        line.sort(now_s, at_once)
        item = enter(line)
        if item.name == -1:
            return
        so_far += work(item)
        assert so_far <= most + passed, "starved"


@given(arrivals=st.lists(st.floats(0, 10), max_size=30), times=st.lists(st.floats(0, 20), max_size=30))
@settings(max_examples=50, deadline=None)
def test_everybody_enters_once_in_the_order_of_arrival_within_each_kind(
    arrivals: list[float], times: list[float]
) -> None:
    def played() -> list[Item]:
        line = filled(sorted(arrivals))
        entered = []
        for now_s in sorted(times):
            line.sort(now_s, at_once)
            if line:
                entered.append(enter(line))
        while line:
            entered.append(enter(line))
        return entered

    entered = played()
    assert sorted(item.name for item in entered) == list(range(len(arrivals)))
    for is_late in (False, True):
        names = [item.name for item in entered if item.is_late is is_late]
        assert names == sorted(names)
    assert played() == entered, "replay"
    assert USED_SHARE_OF_SLO < 1
