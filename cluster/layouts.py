"""In which ways can a model lie on this hardware, and why not in the others? By memory and counts alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from cluster.hardware import Gpu, NodeGroup
from llama31.errors import ConfigInvalid, PlanInvalid
from llama31.memory import OVERHEAD_BYTES, kv_tokens_that_fit, longest_context, rank_weight_bytes
from llama31.parallel import ParallelPlan, check_plan
from llama31.specs import SPECS, ModelSpec

TPS = (1, 2, 4, 8, 16)
PPS = (1, 2, 4, 8)
KV_DTYPES = ("auto", "fp8")
FAMILY = "llama-3.1"
WEIGHTS = {"none": "bf16", "fbgemm_fp8": "fp8-ffn", "fp8_all_linear": "fp8"}


@dataclass(frozen=True, slots=True)
class Nodes:
    """All nodes of one kind: the replicas of a plan stand on these alone."""

    gpu: Gpu
    gpus_per_node: int
    nodes: int

    @property
    def gpus(self) -> int:
        """Of all of them."""
        return self.gpus_per_node * self.nodes

    def replicas_at_most(self, plan: ParallelPlan) -> int:
        """Whole replicas, each TP group inside one node."""
        return self.gpus_per_node // plan.tp * self.nodes // plan.pp

    def __str__(self) -> str:
        return f"{self.nodes}x{self.gpus_per_node}x{self.gpu.name}"


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to hold the model. `usable_bytes` of a GPU are for weights and KV, `weight_bytes` of the fullest rank."""

    spec: ModelSpec
    plan: ParallelPlan
    kv_dtype: str
    nodes: Nodes
    usable_bytes: int
    weight_bytes: int
    kv_tokens: int
    memory_share: float

    @property
    def gpus(self) -> int:
        """Of one replica."""
        return self.plan.world_size

    @property
    def weights(self) -> str:
        """In which dtype the weights are."""
        return WEIGHTS[self.spec.quantization]

    @property
    def kv(self) -> str:
        """In which dtype the KV cache is."""
        return "bf16" if self.kv_dtype == "auto" else self.kv_dtype

    @property
    def longest_context_tokens(self) -> int:
        """Of one sequence."""
        return longest_context(self.spec, self.kv_tokens)

    def __str__(self) -> str:
        return f"{self.spec.name} {self.plan} on {self.nodes.gpu.name}, KV {self.kv}"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A way that does not work: the limit that it breaks, what it needs and what there is, and that in words."""

    layout: Layout
    limit: str
    needs: float
    has: float
    words: str


def specs_of(model: str) -> tuple[ModelSpec, ...]:
    """ "8b", "70b" and "405b" mean every dtype of that size, a full name just that row. Raises: ConfigInvalid."""
    name = model.strip().lower()
    known = [row for row in SPECS if row.startswith(f"{FAMILY}-")]
    if name in known:
        return (SPECS[name],)
    base = f"{FAMILY}-{name}"
    found = tuple(SPECS[row] for row in known if row == base or row.startswith(f"{base}-"))
    if not found:
        raise ConfigInvalid(f"model {model!r} is not known: write 8b, 70b or 405b, or one of {', '.join(known)}")
    return found


def kinds_of(hardware: Iterable[NodeGroup]) -> tuple[Nodes, ...]:
    """Equal nodes together, whatever the order in which they were named."""
    counts: dict[tuple[str, int], Nodes] = {}
    for group in hardware:
        key = (group.gpu.name, group.gpus_per_node)
        known = counts[key].nodes if key in counts else 0
        counts[key] = Nodes(group.gpu, group.gpus_per_node, known + group.nodes)
    return tuple(counts[key] for key in sorted(counts))


def all_layouts(
    specs: Sequence[ModelSpec], kinds: Sequence[Nodes], memory_share: float, kv_dtypes: Sequence[str] = KV_DTYPES
) -> Iterator[Layout]:
    """Every split that divides the models, on every kind of node, whether it fits or not."""
    for nodes in kinds:
        for spec in specs:
            for plan in (ParallelPlan(tp, pp) for tp in TPS for pp in PPS):
                try:
                    check_plan(spec, plan)
                except PlanInvalid:
                    continue
                weights = max(rank_weight_bytes(spec, plan, stage) for stage in range(plan.pp))
                usable = int(nodes.gpu.usable_bytes * memory_share) - OVERHEAD_BYTES
                for kv_dtype in kv_dtypes:
                    tokens = kv_tokens_that_fit(spec, plan, nodes.gpu.usable_bytes, memory_share, kv_dtype=kv_dtype)
                    yield Layout(spec, plan, kv_dtype, nodes, usable, weights, tokens, memory_share)


def why_not(layout: Layout, context_tokens: int) -> Rejected | None:
    """The first limit of memory or number that the layout breaks, with its figures; None if it fits."""
    plan, nodes = layout.plan, layout.nodes
    if plan.tp > nodes.gpus_per_node:
        words = f"a tensor-parallel group of {plan.tp} GPUs would straddle nodes of {nodes.gpus_per_node}"
        return Rejected(layout, "node", plan.tp, nodes.gpus_per_node, words)
    if layout.weight_bytes > layout.usable_bytes:
        words = (
            f"weights {_gb(layout.weight_bytes)} GB per rank > {_gb(layout.usable_bytes)} GB usable of a "
            f"{nodes.gpu.name} ({layout.spec.name}: {_gb(layout.spec.weight_bytes())} GB over {layout.gpus} GPUs)"
        )
        return Rejected(layout, "weights", layout.weight_bytes, layout.usable_bytes, words)
    if layout.kv_dtype == "fp8" and not nodes.gpu.fp8_flops:
        return Rejected(layout, "kv_dtype", 1, 0, f"KV in FP8: a {nodes.gpu.name} has no FP8 unit")
    if nodes.replicas_at_most(plan) < 1:
        words = f"{plan} needs {plan.pp} groups of {plan.tp} GPUs, {nodes} has {nodes.replicas_at_most(_stage(plan))}"
        return Rejected(layout, "gpus", plan.world_size, nodes.gpus, words)
    if layout.kv_tokens < context_tokens:
        words = f"KV room for {layout.kv_tokens:,} tokens < {context_tokens:,} of context"
        return Rejected(layout, "context", context_tokens, layout.kv_tokens, words)
    return None


def smallest_that_fit(
    specs: Sequence[ModelSpec], kinds: Sequence[Nodes], memory_share: float, context_tokens: int
) -> tuple[Layout, ...]:
    """Of each model and kind, the layout with the fewest GPUs that would fit if there were nodes enough."""
    plenty = [replace(nodes, nodes=max(PPS)) for nodes in kinds]
    best: dict[tuple[str, str], Layout] = {}
    for layout in all_layouts(specs, plenty, memory_share):
        key = (layout.spec.name, str(layout.nodes))
        size = (layout.gpus, layout.plan.pp, layout.kv_dtype)
        known = best.get(key)
        if why_not(layout, context_tokens) is None and (
            known is None or size < (known.gpus, known.plan.pp, known.kv_dtype)
        ):
            best[key] = layout
    return tuple(best.values())


def _stage(plan: ParallelPlan) -> ParallelPlan:
    return ParallelPlan(plan.tp)


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f}"
