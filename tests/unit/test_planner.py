"""Does the planner keep memory and budgets, say in numbers why a way fails, and never lose by more GPUs?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steady_prediction import steady_prediction

from cluster.cost import CostModel
from cluster.hardware import parse_hardware
from cluster.layouts import Layout, Nodes, all_layouts, kinds_of, smallest_that_fit, specs_of, why_not
from cluster.planner import Answer, Question, Slo, find_plans
from cluster.policy import StepCost, StepShape, StepSpeed
from cluster.steady import Lengths, SteadyReplica
from llama31.errors import ConfigInvalid
from llama31.memory import OVERHEAD_BYTES, kv_bytes_per_token_per_rank, rank_weight_bytes
from llama31.parallel import ParallelPlan
from llama31.specs import get_spec


@cache
def _cost(model: str, plan: ParallelPlan, gpu: str, kv_dtype: str, share: float) -> CostModel:
    (group,) = parse_hardware(f"1x8x{gpu}")
    return CostModel(get_spec(model), plan, group.gpu, kv_dtype=kv_dtype, memory_share=share, max_running=1024)


def cost_of(layout: Layout, question: Question) -> StepCost:
    """Built once for all tests."""
    return _cost(layout.spec.name, layout.plan, layout.nodes.gpu.name, layout.kv_dtype, question.memory_share)


def ask(model: str, hardware: str, lengths: tuple[int, int] = (1000, 300), **changes: Any) -> Answer:
    asked = Question(model, parse_hardware(hardware), 8192, (lengths,), 5.0, Slo(2.0, 0.1))
    return find_plans(replace(asked, **changes), cost_of, steady_prediction, lambda line: None)


def reasons(answer: Answer, model: str, plan: str) -> list[str]:
    return [r.words for r in answer.rejected if r.layout.spec.name == model and str(r.layout.plan) == plan]


@pytest.mark.parametrize(
    ("model", "hardware", "changes", "first"),
    [
        ("llama-3.1-8b", "1x8xH100", {}, "tp1"),
        ("llama-3.1-70b", "1x8xH100", {"kv_dtypes": ("auto",)}, "tp4"),
        ("llama-3.1-405b-fp8", "1x8xH100", {"rate_per_s": 0.5}, "tp8"),
        # In bf16 it does not fit one node of H100: two, tensor-parallel in each. One of H200 holds it.
        ("llama-3.1-405b", "2x8xH100", {"rate_per_s": 0.5, "slo": Slo(10.0, 1.0)}, "tp8pp2"),
        ("llama-3.1-405b", "1x8xH200", {"rate_per_s": 0.5}, "tp8"),
    ],
)
def test_known_answers(model: str, hardware: str, changes: dict[str, Any], first: str) -> None:
    best = ask(model, hardware, **changes).plans[0]
    assert str(best.layout.plan) == first


def test_405b_in_bf16_on_one_node_of_h100_is_refused_in_numbers() -> None:
    answer = ask("llama-3.1-405b", "1x8xH100", rate_per_s=0.1)
    assert not answer.plans
    (words,) = set(reasons(answer, "llama-3.1-405b", "tp8"))
    assert words == ("weights 101.5 GB per rank > 73.4 GB usable of a H100-80GB (llama-3.1-405b: 811.7 GB over 8 GPUs)")
    assert set(reasons(answer, "llama-3.1-405b", "tp8pp2")) == {"tp8pp2 needs 2 groups of 8 GPUs, 1x8xH100-80GB has 1"}
    helps = smallest_that_fit(specs_of("405b"), kinds_of(parse_hardware("1x8xH100")), 0.9, 8192)
    assert {f"{layout.spec.name} {layout.plan}" for layout in helps} == {
        "llama-3.1-405b tp8pp2",
        "llama-3.1-405b-fp8 tp8",
        "llama-3.1-405b-fp8-all-linear tp8",
    }


@pytest.mark.parametrize(
    ("changes", "plan", "limit", "words"),
    [
        ({}, "tp16", "node", "a tensor-parallel group of 16 GPUs would straddle nodes of 8"),
        ({"context_tokens": 131_072}, "tp2", "context", "KV room for 17,239 tokens < 131,072 of context"),
        ({"slo": Slo(2.0, 0.01)}, "tp4", "itl", "one sequence alone gets a token every "),
        ({"slo": Slo(0.01, 0.1)}, "tp8", "ttft", "a prompt of 1,000 tokens (p99) takes "),
        ({"rate_per_s": 1000.0}, "tp4", "capacity", "1000 requests/s need "),
        ({"max_gpus": 2}, "tp4", "budget", "one replica needs 4 GPUs, the budget gives 2"),
        ({"max_gpu_hours": 24.0, "hours": 12.0}, "tp4", "budget", "one replica needs 4 GPUs, the budget gives 2"),
        ({"rate_per_s": 20.0, "max_gpus": 4}, "tp4", "capacity", "20 requests/s need "),
    ],
)
def test_every_limit_is_told_in_numbers(changes: dict[str, Any], plan: str, limit: str, words: str) -> None:
    answer = ask("llama-3.1-70b", "1x8xH100", **changes)
    found = [r for r in answer.rejected if str(r.layout.plan) == plan and r.limit == limit]
    assert found
    assert any(r.words.startswith(words) for r in found)
    assert all(r.needs > r.has for r in found)


def test_a_missed_objective_is_told_with_the_fleet_that_missed_it() -> None:
    answer = ask("llama-3.1-70b", "1x4xH100", rate_per_s=8.0, slo=Slo(0.15, 0.1), kv_dtypes=("auto",))
    missed = [r.words for r in answer.rejected if r.limit == "ttft" and "replicas" in r.words]
    assert missed
    assert "time to first token p99 " in missed[0]
    assert "> 150 ms with 1 replicas (4 GPUs) at 8 requests/s" in missed[0]


def test_kv_in_fp8_needs_an_fp8_unit() -> None:
    answer = ask("8b", "1x8xA100", rate_per_s=1.0)
    assert {r.limit for r in answer.rejected if r.layout.kv == "fp8" and r.layout.plan.tp < 16} == {"kv_dtype"}
    assert all(plan.layout.kv == "bf16" for plan in answer.plans)


def test_mixed_hardware_is_judged_kind_by_kind() -> None:
    answer = ask("70b", "1x8xA100,2x8xH100,1x8xH200", top=12, rate_per_s=3.0, kv_dtypes=("auto",), weights=("bf16",))
    assert {plan.layout.nodes.gpu.name for plan in answer.plans} >= {"H100-80GB", "H200-141GB"}
    assert kinds_of(parse_hardware("1x8xH100,1x8xH100")) == kinds_of(parse_hardware("2x8xH100"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"context_tokens": 200_000}, "context 200,000 is beyond llama-3.1-70b's 131,072 tokens"),
        ({"context_tokens": 512}, "the workload has requests of 1,300 tokens, more than the context of 512"),
        ({"slo": Slo(0.0, 0.1)}, "an SLO needs times above 0"),
        ({"rate_per_s": -1.0}, "the rate must be above 0"),
        ({"weights": ("fp8-ffn",)}, "70b has no weights in fp8-ffn, only in bf16, fp8"),
    ],
)
def test_questions_without_an_answer(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        ask("70b", "1x8xH100", **changes)
    assert words in str(caught.value)


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ConfigInvalid, match="model '13b' is not known: write 8b, 70b or 405b"):
        ask("13b", "1x8xH100")


@dataclass(frozen=True)
class Line:
    """A replica whose steps cost by a formula: what holds of any cost model is tried with it."""

    layout: Layout

    @property
    def kv_tokens(self) -> int:
        return self.layout.kv_tokens

    def step_s(self, shape: StepShape) -> float:
        size = self.layout.spec.weight_bytes() / 1e12 / self.layout.plan.tp
        read = shape.decode_context_tokens * 1e-8
        return 0.001 + 0.3 * size + (shape.prefill_tokens * size / 2 + read) / self.layout.gpus + 1e-5 * shape.decodes

    def speed(self) -> StepSpeed:
        raise NotImplementedError


PARTS = st.lists(st.sampled_from(("1x4xH100", "2x2xH100", "1x2xH200", "1x2xA100")), min_size=1, max_size=3)
LENGTHS = st.tuples(st.integers(1, 20_000), st.integers(1, 4_000))
RATES = st.floats(0.01, 50.0)
SLOS = st.builds(Slo, st.floats(0.05, 20.0), st.floats(0.005, 1.0), st.sampled_from((0.5, 0.9, 0.99)))
Pairs = tuple[tuple[int, int], ...]


def try_out(parts: list[str], lengths: Pairs, rate: float | None, slo: Slo, **changes: Any) -> Answer:
    context = max(8192, *(sum(pair) for pair in lengths))
    asked = Question("70b", parse_hardware(",".join(parts)), context, lengths, rate, slo, **changes)
    return find_plans(asked, lambda layout, _: Line(layout), steady_prediction, lambda line: None)


@settings(max_examples=15, deadline=None)
@given(PARTS, LENGTHS, RATES, SLOS)
def test_a_plan_keeps_memory_nodes_rate_and_slo(
    parts: list[str], lengths: tuple[int, int], rate: float, slo: Slo
) -> None:
    answer = try_out(parts, (lengths,), rate, slo, max_gpus=6)
    for plan in answer.plans:
        layout, gpu = plan.layout, plan.layout.nodes.gpu
        for stage in range(layout.plan.pp):
            per_token = kv_bytes_per_token_per_rank(layout.spec, layout.plan, stage, layout.kv_dtype)
            held = rank_weight_bytes(layout.spec, layout.plan, stage) + layout.kv_tokens * per_token
            assert held + OVERHEAD_BYTES <= 0.9 * gpu.usable_bytes
        assert layout.kv_tokens >= max(8192, sum(lengths))
        assert plan.fleet.replicas <= layout.nodes.replicas_at_most(layout.plan)
        assert plan.gpus <= 6
        assert plan.fleet.capacity_per_s >= rate
        assert plan.prediction.ttft_slo_s <= slo.ttft_s
        assert plan.prediction.itl_slo_s <= slo.itl_s
    assert [plan.gpus for plan in answer.plans] == sorted(plan.gpus for plan in answer.plans)
    assert all(rejected.needs > rejected.has for rejected in answer.rejected)


@settings(max_examples=8, deadline=None)
@given(PARTS, LENGTHS, RATES, SLOS, st.randoms(use_true_random=False))
def test_neither_the_order_of_nodes_nor_of_lengths_matters(
    parts: list[str], lengths: tuple[int, int], rate: float, slo: Slo, dice: Random
) -> None:
    one = try_out(parts, (lengths, (100, 100)), rate, slo)
    other = try_out(dice.sample(parts, len(parts)), ((100, 100), lengths), rate, slo)
    assert [str(plan.fleet) for plan in one.plans] == [str(plan.fleet) for plan in other.plans]


@settings(max_examples=10, deadline=None)
@given(PARTS, PARTS, LENGTHS, st.one_of(st.none(), RATES), SLOS)
def test_more_gpus_never_make_the_best_plan_worse(
    parts: list[str], more: list[str], lengths: tuple[int, int], rate: float | None, slo: Slo
) -> None:
    changes: dict[str, Any] = {"max_predictions": 10_000, "max_gpus": 6, "top": 1}
    few, many = (try_out(named, (lengths,), rate, slo, **changes) for named in (parts, parts + more))
    if not few.plans:
        return
    if rate is not None:
        assert many.plans[0].gpus <= few.plans[0].gpus
    else:
        assert many.plans[0].prediction.output_tokens_s >= few.plans[0].prediction.output_tokens_s


@settings(max_examples=15, deadline=None)
@given(LENGTHS, st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_a_replica_is_slower_under_more_load(lengths: tuple[int, int], one: float, other: float) -> None:
    replica = SteadyReplica(cost("llama-3.1-70b", "tp4"), Lengths.of([lengths], 0.99), 256, 8192)
    capacity = replica.capacity_per_s()
    less, more = (replica.at(capacity * share) for share in sorted((one, other)))
    assert less is not None
    assert more is not None
    assert more.running >= less.running
    # Measured kernels are not always slower with more to do.
    assert more.itl_s >= 0.9 * less.itl_s
    assert replica.at(1.01 * capacity) is None


def cost(model: str, plan: str) -> CostModel:
    return _cost(model, ParallelPlan.parse(plan), "H100-80GB", "auto", 0.9)


def test_what_a_replica_sustains_is_near_what_it_does_offline() -> None:
    """The two are computed apart: a balance in the long run, and every step of a batch."""
    answer = ask("70b", "1x4xH100", (1000, 1000), rate_per_s=None, slo=Slo())
    for plan in answer.plans:
        sustained = plan.fleet.capacity_per_s * 1000
        assert 0.6 < plan.offline_tokens_s / sustained < 1.15, str(plan.fleet)


def test_all_splits_of_a_model_are_looked_at_and_only_those() -> None:
    (nodes,) = kinds_of(parse_hardware("1x8xH100"))
    layouts = list(all_layouts(specs_of("llama-3.1-8b"), [nodes], 0.9))
    assert {str(layout.plan) for layout in layouts if layout.plan.pp == 1} == {"tp1", "tp2", "tp4", "tp8", "tp16"}
    assert [why_not(layout, 8192) for layout in layouts if str(layout.plan) == "tp1"] == [None, None]
    assert Nodes(nodes.gpu, 8, 3).replicas_at_most(ParallelPlan(4, 2)) == 3
    assert Nodes(nodes.gpu, 6, 3).replicas_at_most(ParallelPlan(4, 2)) == 1
    assert math.isclose(layouts[0].usable_bytes, 0.9 * nodes.gpu.usable_bytes - OVERHEAD_BYTES, rel_tol=1e-9)
