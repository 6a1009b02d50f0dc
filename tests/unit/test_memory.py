"""Do the weights and KV tokens of each rank come out as counted by hand?"""

from __future__ import annotations

import pytest

from llama31.memory import (
    GIB,
    kv_bytes_per_token_per_rank,
    kv_tokens_that_fit,
    longest_context,
    rank_weight_bytes,
)
from llama31.parallel import ParallelPlan
from llama31.specs import SPECS, get_spec

H100_BYTES = int(79.1 * GIB)
H200_BYTES = int(139.8 * GIB)

# Estimates with 4 GiB in reserve, made by cutting *all* weight bytes evenly; what ranks hold whole comes on top.
EVEN_ESTIMATES = [
    ("llama-3.1-405b-fp8", "tp8", "auto", H100_BYTES, 174_247),
    ("llama-3.1-405b-fp8", "tp8", "fp8", H100_BYTES, 348_495),
    ("llama-3.1-405b", "tp8pp2", "auto", H100_BYTES, 663_846),
    ("llama-3.1-405b", "tp8pp2", "fp8", H100_BYTES, 1_327_693),
    ("llama-3.1-405b", "tp16", "auto", H100_BYTES, 323_731),
    ("llama-3.1-405b", "tp8", "auto", H200_BYTES, 454_797),
]


def _held_whole_bytes(name: str, plan: ParallelPlan) -> float:
    """Norms of the fullest stage, and down's row scales, less the even share the estimate has of them."""
    spec = get_spec(name)
    layers = spec.layers // plan.pp
    norms = (layers * spec.norm_params_per_layer + spec.hidden) * 2
    even_norms = (spec.layers * spec.norm_params_per_layer + spec.hidden) * 2 / plan.world_size
    scales = len(spec.fp8_ffn_layers) * spec.hidden * 4 if name.endswith("-fp8") else 0
    return norms - even_norms + scales * (1 - 1 / plan.tp)


@pytest.mark.parametrize(("name", "plan_text", "kv_dtype", "gpu_bytes", "estimate_tokens"), EVEN_ESTIMATES)
def test_kv_tokens_match_the_even_estimate_less_what_is_held_whole(
    name: str, plan_text: str, kv_dtype: str, gpu_bytes: int, estimate_tokens: int
) -> None:
    spec, plan = get_spec(name), ParallelPlan.parse(plan_text)
    tokens = kv_tokens_that_fit(spec, plan, gpu_bytes, overhead_bytes=4 * GIB, kv_dtype=kv_dtype)
    per_token = kv_bytes_per_token_per_rank(spec, plan, plan.pp - 1, kv_dtype)
    assert abs(tokens + _held_whole_bytes(name, plan) / per_token - estimate_tokens) <= 1
    assert tokens == pytest.approx(estimate_tokens, rel=2e-3)


def test_bf16_405b_does_not_fit_one_h100_node() -> None:
    assert kv_tokens_that_fit(get_spec("llama-3.1-405b"), ParallelPlan(8, 1), H100_BYTES) == 0


@pytest.mark.parametrize("name", list(SPECS))
def test_one_rank_holds_the_whole_model(name: str) -> None:
    spec = get_spec(name)
    assert rank_weight_bytes(spec, ParallelPlan(1, 1), 0) == spec.weight_bytes()


@pytest.mark.parametrize("name", list(SPECS))
def test_two_stages_hold_the_model_once_but_a_tied_embedding_twice(name: str) -> None:
    spec, plan = get_spec(name), ParallelPlan(1, 2)
    repeated = spec.embedding_params * 4 if spec.tied_embeddings else 0
    total = sum(rank_weight_bytes(spec, plan, stage) for stage in range(2))
    assert total == spec.weight_bytes() + repeated


def test_embedding_is_on_the_first_stage_and_lm_head_on_the_last() -> None:
    spec = get_spec("llama-3.1-8b")
    first, middle, *_, last = (rank_weight_bytes(spec, ParallelPlan(1, 4), stage) for stage in range(4))
    assert first - middle == spec.embedding_params * 2
    assert last - first == spec.hidden * 2  # the final norm


def test_repeated_kv_heads_cost_weights_and_cache() -> None:
    spec = get_spec("llama-3.1-405b")
    tp8, tp16 = ParallelPlan(8, 1), ParallelPlan(16, 1)
    cache = [kv_bytes_per_token_per_rank(spec, plan, 0) for plan in (tp8, tp16)]
    assert cache == [64_512, 64_512]
    assert rank_weight_bytes(spec, tp16, 0) * 2 > rank_weight_bytes(spec, tp8, 0)


def test_uneven_stages_let_the_fullest_rank_decide() -> None:
    spec, plan = get_spec("smollm2-135m"), ParallelPlan(1, 4)
    per_stage = [kv_bytes_per_token_per_rank(spec, plan, stage) for stage in range(4)]
    assert per_stage == [7 * 2048, 8 * 2048, 8 * 2048, 7 * 2048]
    tokens = kv_tokens_that_fit(spec, plan, GIB, utilisation=1.0, overhead_bytes=0)
    weights = [rank_weight_bytes(spec, plan, stage) for stage in range(4)]
    assert tokens == min((GIB - held) // cost for held, cost in zip(weights, per_stage, strict=True))


@pytest.mark.parametrize(("kv_tokens", "longest"), [(0, 0), (100_000, 100_000), (700_000, 131_072)])
def test_longest_context(kv_tokens: int, longest: int) -> None:
    assert longest_context(get_spec("llama-3.1-405b"), kv_tokens) == longest
