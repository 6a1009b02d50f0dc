"""Which plans divide which model, and how are layers and ranks numbered?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from llama31.errors import PlanInvalid
from llama31.parallel import ParallelPlan, allowed_tp, check_plan, kv_heads_per_rank, layers_per_stage
from llama31.specs import get_spec


@pytest.mark.parametrize(
    ("text", "plan", "canonical"),
    [
        ("tp2pp2", ParallelPlan(2, 2), "tp2pp2"),
        ("tp8", ParallelPlan(8, 1), "tp8"),
        ("pp2", ParallelPlan(1, 2), "pp2"),
        ("tp1pp1", ParallelPlan(1, 1), "tp1"),
        (" TP16PP2 ", ParallelPlan(16, 2), "tp16pp2"),
    ],
)
def test_plans_are_read_and_written(text: str, plan: ParallelPlan, canonical: str) -> None:
    assert ParallelPlan.parse(text) == plan
    assert str(plan) == canonical
    assert ParallelPlan.parse(str(plan)) == plan
    assert plan.world_size == plan.tp * plan.pp


@pytest.mark.parametrize("text", ["", "2", "tp", "tp0", "pp-1", "pp2tp2", "tp2 pp2", "tp2x2", "tp99999", "tp٢"])
def test_unreadable_plans_are_refused_with_examples(text: str) -> None:
    with pytest.raises(PlanInvalid, match="write tp8, pp2 or tp2pp2"):
        ParallelPlan.parse(text)


def test_a_plan_without_ranks_is_refused() -> None:
    with pytest.raises(PlanInvalid, match="at least 1"):
        ParallelPlan(tp=0, pp=1)


@pytest.mark.parametrize(
    ("name", "tps"),
    [
        ("llama-3.1-8b", (1, 2, 4, 8, 16, 32)),
        ("llama-3.1-70b", (1, 2, 4, 8, 16, 32, 64)),
        ("llama-3.1-405b", (1, 2, 4, 8, 16, 32, 64, 128)),
        ("smollm2-135m", (1, 2, 4, 12)),
        ("tiny-llama31", (1, 2, 4, 8, 16)),
    ],
)
def test_tensor_parallel_sizes_that_divide(name: str, tps: tuple[int, ...]) -> None:
    spec = get_spec(name)
    assert allowed_tp(spec) == tps
    for tp in tps:
        check_plan(spec, ParallelPlan(tp, 1))


def test_tp5_is_refused_with_the_numbers_and_the_plans_that_work() -> None:
    with pytest.raises(PlanInvalid) as caught:
        check_plan(get_spec("llama-3.1-8b"), ParallelPlan(5, 1))
    message = str(caught.value)
    assert "32 query heads do not divide by 5" in message
    assert "tp 1, 2, 4, 8, 16, 32" in message
    assert "pp 1 to 32" in message


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(PlanInvalid, match="2 layers cannot fill 3 stages"):
        check_plan(get_spec("tiny-llama31"), ParallelPlan(1, 3))


def test_the_unpadded_stand_in_does_not_divide_by_two() -> None:
    with pytest.raises(PlanInvalid, match="9 query heads do not divide by 2"):
        check_plan(get_spec("smollm2-135m").unpadded(), ParallelPlan(2, 1))


@pytest.mark.parametrize(("tp", "heads"), [(1, 8), (4, 2), (8, 1), (16, 1)])
def test_kv_heads_are_repeated_when_ranks_outnumber_them(tp: int, heads: int) -> None:
    assert kv_heads_per_rank(get_spec("llama-3.1-405b"), ParallelPlan(tp, 1)) == heads


@pytest.mark.parametrize(
    ("layers", "pp", "stages"),
    [
        (126, 2, (63, 63)),
        (30, 4, (7, 8, 8, 7)),
        (7, 2, (4, 3)),
        (5, 3, (2, 2, 1)),
        (4, 3, (1, 2, 1)),
        (11, 4, (3, 3, 3, 2)),
        (2, 2, (1, 1)),
        (32, 1, (32,)),
    ],
)
def test_layers_per_stage(layers: int, pp: int, stages: tuple[int, ...]) -> None:
    spec = replace(get_spec("llama-3.1-8b"), layers=layers)
    assert layers_per_stage(spec, ParallelPlan(1, pp)) == stages


def test_ranks_count_through_a_stage_first() -> None:
    plan = ParallelPlan(2, 2)
    assert [plan.position(rank) for rank in range(4)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [plan.rank(*plan.position(rank)) for rank in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("position", [(2, 0), (0, 2), (-1, 0)])
def test_ranks_outside_the_plan_are_refused(position: tuple[int, int]) -> None:
    with pytest.raises(PlanInvalid):
        ParallelPlan(2, 2).rank(*position)
    with pytest.raises(PlanInvalid):
        ParallelPlan(2, 2).position(4)
