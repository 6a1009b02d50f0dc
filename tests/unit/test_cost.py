"""Does a step cost more when it does more, and do plans, dtypes and GPUs compare as physics says?"""

from __future__ import annotations

import time
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.cost import CostModel
from cluster.hardware import get_gpu
from cluster.policy import StepCost, StepShape
from llama31.errors import ConfigInvalid, PlanInvalid
from llama31.parallel import ParallelPlan
from llama31.specs import get_spec

PLANS = [
    ("llama-3.1-8b", "tp1", "H100", "vllm"),
    ("llama-3.1-70b", "tp4", "H100", "vllm"),
    ("llama-3.1-70b-fp8-all-linear", "tp2", "H200", "tensorrt"),
    ("llama-3.1-405b-fp8", "tp8", "H100", "vllm"),
    ("llama-3.1-405b", "tp8pp2", "H100", "vllm"),
    ("llama-3.1-405b", "tp16", "A100", "vllm"),
]


@cache
def model(name: str, plan: str, gpu: str = "H100", family: str = "vllm", kv_dtype: str = "auto") -> CostModel:
    return CostModel(get_spec(name), ParallelPlan.parse(plan), get_gpu(gpu), family=family, kv_dtype=kv_dtype)


def decode_s(cost: StepCost, decodes: int, context: int) -> float:
    return cost.step_s(StepShape(decodes=decodes, decode_context_tokens=decodes * context))


def prefill_s(cost: StepCost, tokens: int, past: int = 0) -> float:
    return cost.step_s(StepShape(prefill_tokens=tokens, prefill_pairs=tokens * (past + tokens / 2)))


@settings(max_examples=50, deadline=None)
@given(
    plan=st.sampled_from(PLANS),
    prefill=st.integers(0, 20_000),
    past=st.integers(0, 131_072),
    decodes=st.integers(0, 6000),
    context=st.integers(1, 131_072),
)
def test_any_step_costs_something_and_more_of_it_no_less(
    plan: tuple[str, str, str, str], prefill: int, past: int, decodes: int, context: int
) -> None:
    cost = model(*plan)
    shape = StepShape(prefill, prefill * (past + prefill / 2), decodes, decodes * context)
    seconds = cost.step_s(shape)
    if not prefill and not decodes:
        assert seconds == 0
        return
    # Measured tables are not monotonic to the last percent: the next larger tile is at times the faster one.
    lowest = 0.7 * seconds
    assert 1e-4 < seconds < 3600
    assert cost.step_s(StepShape(prefill, shape.prefill_pairs, decodes, 2 * decodes * context)) >= 0.999 * seconds
    assert cost.step_s(StepShape(prefill, 2 * shape.prefill_pairs, decodes, decodes * context)) >= lowest
    assert cost.step_s(StepShape(prefill, shape.prefill_pairs, 2 * decodes, 2 * decodes * context)) >= lowest


@pytest.mark.parametrize("plan", PLANS)
def test_a_step_is_slower_than_its_bytes_and_flops(plan: tuple[str, str, str, str]) -> None:
    cost = model(*plan)
    spec, gpus = cost.spec, cost.plan.world_size
    weights_s = (spec.weight_bytes() - 2 * spec.embedding_params) / (gpus * cost.gpu.hbm_bytes_s)
    # A pipeline gives one stream no speed: its stages work one after the other.
    assert decode_s(cost, 1, 1) > weights_s * cost.plan.pp
    assert decode_s(cost, 1, 1) < 4 * weights_s * cost.plan.pp
    flops_s = spec.prefill_flops(8192) / (gpus * cost.gpu.flops("fp8" if "fp8" in spec.name else "bfloat16"))
    assert flops_s < prefill_s(cost, 8192) < 4.5 * flops_s


def test_more_ranks_are_faster_but_not_in_proportion() -> None:
    times = [decode_s(model("llama-3.1-70b", plan), 1, 1000) for plan in ("tp2", "tp4", "tp8")]
    assert times == sorted(times, reverse=True)
    assert times[0] < 4 * times[2]


def test_fp8_is_faster_and_leaves_more_room() -> None:
    bf16, fp8 = (model(name, "tp4") for name in ("llama-3.1-70b", "llama-3.1-70b-fp8-all-linear"))
    assert decode_s(fp8, 16, 1000) < 0.8 * decode_s(bf16, 16, 1000)
    assert fp8.kv_tokens > 1.4 * bf16.kv_tokens
    meta, all_linear = (model(name, "tp8") for name in ("llama-3.1-405b-fp8", "llama-3.1-405b-fp8-all-linear"))
    assert decode_s(all_linear, 1, 1000) < decode_s(meta, 1, 1000)
    assert all_linear.kv_tokens > meta.kv_tokens


def test_a_pipeline_gives_throughput_and_room_but_no_speed() -> None:
    whole, piped = model("llama-3.1-70b", "tp4"), model("llama-3.1-70b", "tp4pp2")
    assert decode_s(piped, 1, 1000) > 0.9 * decode_s(whole, 1, 1000)
    assert decode_s(piped, 512, 1000) < 0.8 * decode_s(whole, 512, 1000)
    assert prefill_s(piped, 8192) < 0.65 * prefill_s(whole, 8192)
    assert piped.kv_tokens > 2 * whole.kv_tokens


def test_prefill_in_the_same_step_delays_the_decodes() -> None:
    cost = model("llama-3.1-8b", "tp1")
    alone = decode_s(cost, 64, 1000)
    mixed = cost.step_s(StepShape(2048, 2048 * 1024.0, 64, 64_000))
    assert mixed > 3 * alone
    # One step for both is cheaper than two: the weights are read once.
    assert mixed < alone + prefill_s(cost, 2048)


def test_a_chunk_behind_a_past_reads_it() -> None:
    cost = model("llama-3.1-70b", "tp4")
    assert prefill_s(cost, 1024, past=60_000) > 1.5 * prefill_s(cost, 1024)


@pytest.mark.parametrize("plan", PLANS)
def test_the_line_is_near_typical_steps(plan: tuple[str, str, str, str]) -> None:
    cost = model(*plan)
    speed = cost.speed()
    assert min(speed.fixed_s, speed.prefill_token_s, speed.sequence_s, speed.context_token_s) >= 0
    for decodes, context in ((16, 1000), (64, 2048), (128, 2048), (64, 4096)):
        line_s = speed.step_s(0, decodes, decodes * context)
        assert line_s == pytest.approx(decode_s(cost, decodes, context), rel=0.35)
    chunk = speed.max_step_tokens - 32
    mixed = StepShape(chunk, chunk * 2000.0, 32, 32 * 2000)
    assert speed.step_s(chunk, 32, 64_000) == pytest.approx(cost.step_s(mixed), rel=0.25)


def test_small_steps_have_a_line_too() -> None:
    cost = CostModel(get_spec("llama-3.1-8b"), ParallelPlan(1), get_gpu("H100"), max_step_tokens=16, max_running=4)
    assert cost.speed().prefill_token_s > 0
    # Beyond the table: as the last tokens go on.
    assert decode_s(cost, 512, 1000) > decode_s(cost, 16, 1000)


def test_a_step_is_looked_up_in_microseconds() -> None:
    cost = model("llama-3.1-70b", "tp4")
    shape = StepShape(1000, 500_000.0, 64, 64_000)
    began_s = time.process_time()
    for _ in range(2000):
        cost.step_s(shape)
    # 2 us each on a free core; the bound only finds a lost table.
    assert time.process_time() - began_s < 2000 * 200e-6


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(PlanInvalid):
        model("llama-3.1-8b", "tp3")
    with pytest.raises(ConfigInvalid, match="engine family 'none' is not known"):
        model("llama-3.1-8b", "tp1", family="none")


def test_weights_that_do_not_fit_leave_no_room() -> None:
    assert model("llama-3.1-405b", "tp8").kv_tokens == 0
