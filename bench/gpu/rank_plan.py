"""Which kernels, at which sizes, does a measurement of one rank need?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.rank_shapes import rank_gemms, rank_heads
from llama31.parallel import ParallelPlan, check_plan
from llama31.specs import get_spec

TOKENS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CONTEXTS = (2, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
PROMPTS = (1, 4, 16, 64)
PROMPT_TOKENS = (16, 128, 512, 1024, 2048, 4096, 8192, 16384)
REDUCED_BYTES = tuple(1 << power for power in range(8, 31))

QUICK_TOKENS = (1, 16, 64, 256)
QUICK_BATCHES, QUICK_CONTEXTS = (1, 8), (2, 256)
QUICK_PROMPTS, QUICK_PROMPT_TOKENS = (1, 2), (16, 128)


@dataclass(frozen=True, slots=True)
class RankPlan:
    """Everything that one file holds. `gemms` and `heads` are those of all models and tps, each once."""

    gemms: tuple[tuple[int, int], ...]
    heads: tuple[tuple[int, int], ...]
    tokens: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    prompt_tokens: tuple[int, ...]


def build_plan(models: Iterable[str], tps: Iterable[int], *, quick: bool) -> RankPlan:
    """The shapes of each model at each tp. Raises: ModelNotFound, PlanInvalid."""
    gemms, heads = set(), set()
    for name in models:
        spec = get_spec(name)
        for tp in tps:
            check_plan(spec, ParallelPlan(tp))
            gemms |= set(rank_gemms(spec, tp).values())
            heads.add(rank_heads(spec, tp))
    return RankPlan(
        gemms=tuple(sorted(gemms)),
        heads=tuple(sorted(heads)),
        tokens=QUICK_TOKENS if quick else TOKENS,
        batches=QUICK_BATCHES if quick else BATCHES,
        contexts=QUICK_CONTEXTS if quick else CONTEXTS,
        prompts=QUICK_PROMPTS if quick else PROMPTS,
        prompt_tokens=QUICK_PROMPT_TOKENS if quick else PROMPT_TOKENS,
    )
