"""The rule that says how many replicas there should be: bounds, patience, monotony, calm."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.policy import DemandTick, FleetSnapshot, ScalerMemory
from deployments.policies.autoscaler import (
    REASONS,
    ScalingRules,
    SloAutoscaler,
    replicas_for,
    replicas_where_late_yield,
)

RULES = ScalingRules(
    prompt_tokens_per_s=1000.0,
    output_tokens_per_s=500.0,
    slo_ttft_s=2.0,
    lead_s=65.0,
    min_replicas=0,
    max_replicas=12,
    late_yield=False,
)
YIELD = replace(RULES, late_yield=True)


def fleet(load: float = 0.0, now_s: float = 0.0, ready: int = 1, **more: float) -> FleetSnapshot:
    """A picture with so many replicas' worth of work, all of it prompts."""
    quiet = FleetSnapshot(
        now_s=now_s,
        ready=ready,
        starting=0,
        draining=0,
        room=20,
        waiting_requests=0.0,
        running_requests=0.0,
        backlog_s=0.0,
        demand=(DemandTick(5.0, 1.0, load * 5000.0, 0.0),),
    )
    return replace(quiet, **more)  # type: ignore[arg-type]


def decided(pictures: list[FleetSnapshot], rules: ScalingRules = RULES) -> list[tuple[int, str]]:
    """Target and reason of each decision in a row."""
    memory, found = ScalerMemory(), []
    for picture in pictures:
        scale, memory = SloAutoscaler(rules).decide(picture, memory)
        found.append((scale.target, scale.reason))
    return found


@pytest.mark.parametrize(
    ("picture", "rules", "expected"),
    [
        (fleet(0.5), RULES, (1, "steady")),
        (fleet(2.5, ready=3), RULES, (3, "steady")),
        (fleet(2.5), RULES, (6, "backlog")),
        (fleet(2.5, ready=3, backlog_s=3.0), RULES, (4, "backlog")),
        (fleet(2.5, ready=3, waiting_requests=2), RULES, (6, "backlog")),
        # Where the late yield, what waits is drained in a minute, and nothing in advance.
        (fleet(2.5), YIELD, (3, "demand")),
        (fleet(2.5, ready=3, backlog_s=3.0), YIELD, (3, "steady")),
        (fleet(2.5, ready=3, waiting_requests=2), YIELD, (3, "steady")),
        (fleet(2.5, ready=3, waiting_requests=6), YIELD, (4, "backlog")),
        (fleet(2.5, ready=3, waiting_requests=6000), YIELD, (6, "backlog")),
        (fleet(40.0), RULES, (12, "at_max")),
        (fleet(5.0, room=1), RULES, (2, "no_room")),
        (fleet(5.01, ready=5), replace(RULES, lead_s=1.0), (6, "demand")),
        (fleet(0.0, ready=0, waiting_requests=3), RULES, (1, "wake")),
        (fleet(1.5, ready=0), RULES, (2, "wake")),
        (fleet(0.0, ready=0), RULES, (0, "steady")),
        (fleet(0.1, ready=1), replace(RULES, min_replicas=2), (2, "at_min")),
        (fleet(0.5, ready=4), RULES, (4, "keep")),
    ],
)
def test_one_picture(picture: FleetSnapshot, rules: ScalingRules, expected: tuple[int, str]) -> None:
    assert decided([picture], replace(rules, late_price=0.0)) == [expected]


def test_fewer_only_after_a_while_and_to_the_highest_need_of_it() -> None:
    loads = [3.9, 0.9, 1.9, *[0.9] * 30]
    pictures = [fleet(load, 5.0 * n, ready=4) for n, load in enumerate(loads)]
    targets = [target for target, _ in decided(pictures, replace(RULES, late_price=0.0))]
    assert targets[:13] == [4] * 13, "nothing goes within keep_s"
    assert targets[13] == 2, "the need of 1.9 lies within the while"
    assert targets[-1] == 1


def test_the_last_replica_goes_after_the_idle_time_and_comes_back_for_a_held_request() -> None:
    calm = [fleet(0.0, 5.0 * n, ready=1) for n in range(122)]
    assert [target for target, _ in decided(calm)].index(0) == 120, "600 s"
    held = fleet(0.0, 700.0, ready=0, waiting_requests=1)
    assert decided([*calm, held])[-1] == (1, "wake")


def test_a_start_under_way_is_not_asked_for_twice() -> None:
    first, *_ = decided([fleet(2.5, backlog_s=3.0)])
    again = decided([fleet(2.5, backlog_s=3.0), fleet(2.5, 5.0, starting=first[0] - 1, backlog_s=3.0)])
    assert again[1][0] <= first[0]


@pytest.mark.parametrize("rules", [RULES, YIELD])
def test_jumps_of_the_past_buy_headroom(rules: ScalingRules) -> None:
    calm = [fleet(4.0, 60.0 * n, ready=5) for n in range(60)]
    wild = [fleet(4.0 * (1.5 if n // 10 % 2 else 1 / 1.5), 60.0 * n, ready=5) for n in range(60)]
    end = fleet(4.0, 3600.0, ready=5)
    assert decided([*wild, end], rules)[-1][0] > decided([*calm, end], rules)[-1][0]


@given(st.floats(0, 30), st.floats(0, 30), st.floats(0.001, 0.7), st.floats(0, 100), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_more_load_never_needs_fewer(load: float, more: float, spread: float, price: float, most: int) -> None:
    for needed in (replicas_for, replicas_where_late_yield):
        assert needed(load, spread, price, most) <= needed(load + more, spread, price, most)
        assert needed(load, spread, price, most) >= load - 1e-6


PICTURES = st.builds(
    FleetSnapshot,
    now_s=st.floats(0, 1e6),
    ready=st.integers(0, 20),
    starting=st.integers(0, 5),
    draining=st.integers(0, 5),
    room=st.integers(0, 10),
    waiting_requests=st.floats(0, 100),
    running_requests=st.floats(0, 100),
    backlog_s=st.floats(0, 1000),
    demand=st.lists(
        st.builds(DemandTick, st.floats(0.1, 60), st.floats(0, 1e3), st.floats(0, 1e7), st.floats(0, 1e7)), max_size=4
    ).map(tuple),
)


@given(st.lists(PICTURES, min_size=1, max_size=8), st.integers(0, 3), st.integers(3, 15), st.booleans())
@settings(max_examples=50, deadline=None)
def test_within_bounds_and_room_and_equal_again(
    pictures: list[FleetSnapshot], least: int, most: int, late_yield: bool
) -> None:
    rules = replace(RULES, min_replicas=least, max_replicas=most, late_yield=late_yield)
    memory = ScalerMemory()
    for picture in sorted(pictures, key=lambda p: p.now_s):
        scale, after = SloAutoscaler(rules).decide(picture, memory)
        assert 0 <= scale.target <= most
        assert scale.target <= picture.ready + picture.starting + picture.room
        assert scale.target >= min(least, picture.ready + picture.starting + picture.room)
        assert scale.reason in REASONS
        assert SloAutoscaler(rules).decide(picture, memory) == (scale, after)
        memory = after


@given(st.floats(0.1, 11), st.integers(1, 12), st.booleans())
@settings(max_examples=30, deadline=None)
def test_constant_load_settles(load: float, at_first: int, late_yield: bool) -> None:
    memory, ready, targets = ScalerMemory(target=at_first), at_first, []
    for tick in range(400):
        rules = YIELD if late_yield else RULES
        scale, memory = SloAutoscaler(rules).decide(fleet(load, 5.0 * tick, ready=ready), memory)
        ready = scale.target
        targets.append(ready)
    changes = [after - before for before, after in pairwise(targets) if after != before]
    assert sum(a * b < 0 for a, b in pairwise(changes)) == 0, "no change of direction"
