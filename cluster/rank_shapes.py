"""Which matrices and attention heads does one rank of Llama 3.1 compute with?"""

from __future__ import annotations

from llama31.parallel import ParallelPlan, kv_heads_per_rank
from llama31.specs import ModelSpec, get_spec

MODELS = ("llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b")
TPS = (1, 2, 4, 8, 16)


def rank_gemms(spec: ModelSpec, tp: int) -> dict[str, tuple[int, int]]:
    """`(n, k)` of `out(m, n) = x(m, k) W(k, n)` for each matrix of one rank; `m` is the step's tokens."""
    query = spec.heads // tp * spec.head_dim
    keys = kv_heads_per_rank(spec, ParallelPlan(tp)) * spec.head_dim
    return {
        "qkv": (query + 2 * keys, spec.hidden),
        "o": (spec.hidden, query),
        "gate_up": (2 * spec.ffn_hidden // tp, spec.hidden),
        "down": (spec.hidden, spec.ffn_hidden // tp),
        "lm_head": (-(-spec.vocab_size // tp), spec.hidden),
    }


def rank_heads(spec: ModelSpec, tp: int) -> tuple[int, int]:
    """Query and KV heads of one rank."""
    return spec.heads // tp, kv_heads_per_rank(spec, ParallelPlan(tp))


def all_gemms() -> list[tuple[int, int]]:
    """Every `(n, k)` of every model and tp, once."""
    return sorted({shape for name in MODELS for tp in TPS for shape in rank_gemms(get_spec(name), tp).values()})


def all_heads() -> list[tuple[int, int]]:
    """Every pair of query and KV heads, once."""
    return sorted({rank_heads(get_spec(name), tp) for name in MODELS for tp in TPS})
