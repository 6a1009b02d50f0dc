"""How may a model be split into tensor-parallel ranks and pipeline stages?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from llama31.errors import PlanInvalid
from llama31.specs import ModelSpec

_PLAN_TEXT = re.compile(r"(?:tp([1-9][0-9]{0,3}))?(?:pp([1-9][0-9]{0,3}))?")


@dataclass(frozen=True, slots=True)
class ParallelPlan:
    """`tp` ranks share every layer of a stage; `pp` stages share the layers."""

    tp: int = 1
    pp: int = 1

    def __post_init__(self) -> None:
        if self.tp < 1 or self.pp < 1:
            raise PlanInvalid(f"a plan needs tp and pp of at least 1, not tp={self.tp} and pp={self.pp}")

    def __str__(self) -> str:
        if self.pp == 1:
            return f"tp{self.tp}"
        return f"pp{self.pp}" if self.tp == 1 else f"tp{self.tp}pp{self.pp}"

    @property
    def world_size(self) -> int:
        """`tp*pp` ranks."""
        return self.tp * self.pp

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads "tp8", "pp2" or "tp2pp2". Raises: PlanInvalid."""
        match = _PLAN_TEXT.fullmatch(text.strip().lower())
        if match is None or not match[0]:
            raise PlanInvalid(f"plan {text!r} is not understood: write tp8, pp2 or tp2pp2")
        return cls(tp=int(match[1] or 1), pp=int(match[2] or 1))

    def rank(self, stage: int, tp_rank: int) -> int:
        """`stage*tp + tp_rank`, the engine's numbering. Raises: PlanInvalid."""
        if not (0 <= stage < self.pp and 0 <= tp_rank < self.tp):
            raise PlanInvalid(f"{self} has no tensor-parallel rank {tp_rank} in stage {stage}")
        return stage * self.tp + tp_rank

    def position(self, rank: int) -> tuple[int, int]:
        """`(stage, tp_rank)` of a rank. Raises: PlanInvalid."""
        if not 0 <= rank < self.world_size:
            raise PlanInvalid(f"{self} has ranks 0 to {self.world_size - 1}, not {rank}")
        return divmod(rank, self.tp)


def check_plan(spec: ModelSpec, plan: ParallelPlan) -> None:
    """Raises: PlanInvalid, naming the number that does not divide and the plans that would work."""
    reasons = _tp_reasons(spec, plan.tp)
    if plan.pp > spec.layers:
        reasons.append(f"{spec.layers} layers cannot fill {plan.pp} stages")
    if reasons:
        tps = ", ".join(str(tp) for tp in allowed_tp(spec))
        raise PlanInvalid(
            f"{spec.name} cannot be split as {plan}: {'; '.join(reasons)}. "
            f"Plans that work: tp {tps}, each with pp 1 to {spec.layers}"
        )


def allowed_tp(spec: ModelSpec) -> tuple[int, ...]:
    """Every tensor-parallel size that divides this model, ascending."""
    return tuple(tp for tp in range(1, spec.heads + 1) if not _tp_reasons(spec, tp))


def kv_heads_per_rank(spec: ModelSpec, plan: ParallelPlan) -> int:
    """`max(1, kv_heads/tp)`: with more ranks than KV heads each head is held by several ranks."""
    return max(1, spec.kv_heads // plan.tp)


def layers_per_stage(spec: ModelSpec, plan: ParallelPlan) -> tuple[int, ...]:
    """Layers of every stage: what does not divide goes to the stages before the last, one each.

    The last stage is spared because it also holds the final norm and lm_head.
    Source: vllm.distributed.utils.get_pp_indices.
    """
    per_stage, extra = divmod(spec.layers, plan.pp)
    first_with_extra = plan.pp - 1 - extra
    return tuple(per_stage + (1 if first_with_extra <= stage < plan.pp - 1 else 0) for stage in range(plan.pp))


def _tp_reasons(spec: ModelSpec, tp: int) -> list[str]:
    reasons = [
        f"{count} {what} do not divide by {tp}"
        for what, count in (("query heads", spec.heads), ("FFN columns", spec.ffn_hidden))
        if count % tp
    ]
    if spec.kv_heads % tp and tp % spec.kv_heads:
        reasons.append(f"{spec.kv_heads} KV heads neither divide by {tp} nor repeat evenly over {tp} ranks")
    return reasons
