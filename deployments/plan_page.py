"""How is the planner's answer shown: as a table for people, and as JSON for programs? Every figure is modelled."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from cluster.layouts import FAMILY, Layout, Rejected, kinds_of, smallest_that_fit, specs_of
from cluster.planner import Answer, Fleet, Plan, Question

FORM = 1
MAX_REASONS = 24
# The one that says most about a question comes first.
LIMITS = ("ttft", "itl", "capacity", "budget", "context", "weights", "kv_dtype", "gpus", "node")
_COUNTED = {
    "node": "a tensor-parallel group would straddle nodes: there are {nodes}",
    "gpus": "{nodes} has too few groups of GPUs",
}
_COLUMNS = (
    ("#", "{rank}"),
    ("model", "{model}"),
    ("weights", "{weights}"),
    ("KV", "{kv_dtype}"),
    ("GPU", "{gpu}"),
    ("plan", "{plan}"),
    ("replicas", "{replicas}"),
    ("GPUs", "{gpus}"),
    ("step", "{max_batched_tokens}"),
    ("KV tokens", "{kv_tokens:,}"),
    ("context", "{longest_context_tokens:,}"),
    ("TTFT p50/p99 ms", "{ttft_p50_ms:.0f}/{ttft_p99_ms:.0f}"),
    ("ITL p50/p99 ms", "{itl_p50_ms:.1f}/{itl_p99_ms:.1f}"),
    ("goodput/s", "{goodput_per_s:.3g}"),
    ("room/s", "{capacity_per_s:.3g}"),
    ("tok/s/GPU", "{tokens_per_s_per_gpu:.0f}"),
    ("J/tok", "{joules_per_token:.2g}"),
    ("GPU-h", "{gpu_hours:.4g}"),
)


def answer_tree(question: Question, answer: Answer) -> dict[str, Any]:
    """The answer as JSON holds it; `llama31 verify --plan` reads it."""
    return {
        "form": FORM,
        "figures": "modelled",
        "question": _question_tree(question),
        "plans": [plan_tree(plan, rank) for rank, plan in enumerate(answer.plans, 1)],
        "rejected": [_rejected_tree(rejected) for rejected in answer.rejected],
        "dearer": [_layout_tree(fleet.layout) | {"gpus_at_least": fleet.gpus} for fleet in answer.dearer],
        "predictions": answer.predictions,
    }


def plan_tree(plan: Plan, rank: int) -> dict[str, Any]:
    """One ranked plan."""
    prediction, fleet = plan.prediction, plan.fleet
    return _layout_tree(plan.layout) | {
        "rank": rank,
        "replicas": fleet.replicas,
        "gpus": plan.gpus,
        "max_batched_tokens": fleet.replica.max_step_tokens,
        "max_running": fleet.replica.max_running,
        "kv_tokens": plan.layout.kv_tokens,
        "longest_context_tokens": plan.layout.longest_context_tokens,
        "rate_per_s": fleet.rate_per_s,
        "capacity_per_s": fleet.capacity_per_s,
        "offline_tokens_per_s": plan.offline_tokens_s,
        "ttft_p50_s": prediction.ttft_p50_s,
        "ttft_p99_s": prediction.ttft_p99_s,
        "itl_p50_s": prediction.itl_p50_s,
        "itl_p99_s": prediction.itl_p99_s,
        "goodput_per_s": prediction.goodput_per_s,
        "output_tokens_per_s": prediction.output_tokens_s,
        "tokens_per_s_per_gpu": plan.tokens_s_per_gpu,
        "joules_per_token": plan.joules_per_token,
        "gpu_hours": plan.gpu_hours,
        "busy": prediction.busy,
    }


def table_lines(question: Question, answer: Answer) -> Iterator[str]:
    """The ranked plans, then why the others are not among them."""
    if answer.plans:
        yield from _aligned([_row(plan, rank) for rank, plan in enumerate(answer.plans, 1)])
        yield ""
        yield (
            "Modelled: kernels measured on such GPUs, queues simulated (docs/capacity.md). room: requests/s without "
            "an SLO; step: engine.max_batched_tokens; J/tok: of the boards."
        )
    if not answer.plans and (helps := list(help_lines(question))):
        yield f"No plan holds. Would hold the model and {question.context_tokens:,} tokens of context:"
        yield from (f"  {line}" for line in helps)
    reasons = list(_reasons(answer.rejected))
    if reasons:
        yield ""
        yield "Rejected, with the fleet that was tried where it was one of the SLO:"
        yield from (f"  {line}" for line in reasons[:MAX_REASONS])
        if len(reasons) > MAX_REASONS:
            yield f"  and {len(reasons) - MAX_REASONS} more; --json has all"
    if answer.dearer:
        yield ""
        yield from _dearer_lines(answer.dearer)


def nearest_miss(answer: Answer) -> str:
    """The way that came closest to what was asked, in words."""
    if not answer.rejected:
        return "nothing was left to try"
    best = min(answer.rejected, key=lambda r: (LIMITS.index(r.limit), r.needs / max(r.has, 1e-9), str(r.layout)))
    return f"{best.layout}: {best.words}"


def help_lines(question: Question) -> Iterator[str]:
    """What would hold the model and its context at all, in every dtype, with as many nodes as it takes."""
    specs, kinds = specs_of(question.model), kinds_of(question.hardware)
    base = specs_of(specs[0].name.split("-fp8")[0].removeprefix(f"{FAMILY}-"))
    fitting = smallest_that_fit(base, kinds, question.memory_share, question.context_tokens)
    for layout in sorted(fitting, key=lambda layout: (layout.gpus, str(layout))):
        nodes = -(-layout.gpus // layout.nodes.gpus_per_node)
        where = f"{nodes} node{'s' * (nodes > 1)} of {layout.nodes.gpus_per_node} {layout.nodes.gpu.name}"
        yield f"{layout.spec.name} {layout.plan} on {where}: KV room for {layout.kv_tokens:,} tokens in {layout.kv}"


def _question_tree(question: Question) -> dict[str, Any]:
    slo = question.slo
    return {
        "model": question.model,
        "hardware": ",".join(map(str, question.hardware)),
        "context_tokens": question.context_tokens,
        "rate_per_s": question.rate_per_s,
        "slo": {"ttft_s": _finite(slo.ttft_s), "itl_s": _finite(slo.itl_s), "percentile": 100 * slo.percentile},
        "max_gpus": question.max_gpus,
        "max_gpu_hours": question.max_gpu_hours,
        "hours": question.hours,
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _layout_tree(layout: Layout) -> dict[str, Any]:
    return {
        "model": layout.spec.name,
        "weights": layout.weights,
        "kv_dtype": layout.kv,
        "gpu": layout.nodes.gpu.name,
        "gpus_per_node": layout.nodes.gpus_per_node,
        "plan": str(layout.plan),
        "tp": layout.plan.tp,
        "pp": layout.plan.pp,
    }


def _rejected_tree(rejected: Rejected) -> dict[str, Any]:
    numbers = {
        "limit": rejected.limit,
        "needs": _finite(rejected.needs),
        "has": _finite(rejected.has),
        "words": rejected.words,
    }
    return _layout_tree(rejected.layout) | numbers


def _row(plan: Plan, rank: int) -> list[str]:
    tree = plan_tree(plan, rank)
    for name in ("ttft_p50", "ttft_p99", "itl_p50", "itl_p99"):
        tree[f"{name}_ms"] = 1000 * tree[f"{name}_s"]
    tree["model"] = tree["model"].removeprefix("llama-3.1-").split("-")[0]
    return [form.format(**tree) for _, form in _COLUMNS]


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    table = [[name for name, _ in _COLUMNS], *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(_COLUMNS))]
    for row in table:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _reasons(rejected: Sequence[Rejected]) -> Iterator[str]:
    """One line for what says the same of one model: objectives and load first, what is plain to see last."""
    together: dict[tuple[int, str, str, str], list[Rejected]] = {}
    for one in rejected:
        words = _COUNTED.get(one.limit, one.words)
        name = "any model" if one.limit in _COUNTED else one.layout.spec.name
        key = (LIMITS.index(one.limit), name, one.layout.nodes.gpu.name, words)
        together.setdefault(key, []).append(one)
    for (_, name, gpu, words), ones in sorted(together.items(), key=lambda entry: entry[0][0]):
        plans = ", ".join(dict.fromkeys(str(one.layout.plan) for one in ones))
        kinds = sorted({one.layout.kv for one in ones})
        kv = f", KV {kinds[0]}" if len(kinds) == 1 else ""
        yield f"{name} {plans} on {gpu}{kv}: {words.format(nodes=ones[0].layout.nodes)}"


def _dearer_lines(dearer: Sequence[Fleet]) -> Iterator[str]:
    by_gpus: dict[int, list[str]] = {}
    for fleet in dearer:
        plan = f"{fleet.layout.spec.name.removeprefix('llama-3.1-')} {fleet.layout.plan}"
        by_gpus.setdefault(fleet.gpus, []).append(plan)
    yield "Not predicted, for they need at least as many GPUs as the ranked ones:"
    for gpus, plans in sorted(by_gpus.items()):
        yield f"  {gpus} GPUs: {', '.join(dict.fromkeys(plans))}"
