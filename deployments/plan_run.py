"""How is the planner asked what the options say, and where does its answer go?"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

from cluster.cost import CostModel
from cluster.hardware import parse_hardware
from cluster.layouts import KV_DTYPES, WEIGHTS, Layout, specs_of
from cluster.plan_simulation import SimulatedPrediction
from cluster.plan_workload import LengthSpread, PlanWorkload, from_lengths, from_trace
from cluster.planner import Answer, Question, Slo, find_plans
from cluster.sim_ingress import Policies
from deployments import plan_emit, plan_page
from deployments.policies.prefix_index import PrefixIndex
from deployments.policies.router import PredictedTtft
from llama31.errors import ConfigInvalid

EXIT_NO_PLAN = 1
INDEX_BLOCKS = 200_000
# Of an online service, where the options name none. Source: MLPerf Inference v5.1, Llama 3.1 8B, server.
DEFAULT_TTFT_S, DEFAULT_ITL_S = 2.0, 0.1
DEFAULT_CONTEXT_TOKENS = 8192


def run_plan(options: argparse.Namespace) -> int:
    """Plans. Raises: ConfigInvalid."""
    workload = _workload(options)
    question = _question(options, workload)
    began_s = time.monotonic()

    def progress(line: str) -> None:
        print(f"[{time.monotonic() - began_s:5.1f} s] {line}", file=sys.stderr, flush=True)

    predict = SimulatedPrediction(workload, Policies(PredictedTtft, lambda: PrefixIndex(INDEX_BLOCKS)))
    answer = find_plans(question, cost_of, predict, progress)
    if options.plot is not None and answer.plans:
        from deployments.plan_plot import draw_frontier

        for file in draw_frontier(question, answer, options.plot):
            progress(f"drew {file}")
    holds = bool(answer.plans)
    # A file that others will read as a configuration holds one, or is not written.
    _write(_text(options, question, answer), options.out if holds or options.emit is None else None)
    if holds:
        return 0
    print(f"llama31: no plan holds. Closest: {plan_page.nearest_miss(answer)}", file=sys.stderr)
    return EXIT_NO_PLAN


def cost_of(layout: Layout, question: Question) -> CostModel:
    """Of one replica, by our engine's measured kernels."""
    return CostModel(
        layout.spec,
        layout.plan,
        layout.nodes.gpu,
        kv_dtype=layout.kv_dtype,
        memory_share=question.memory_share,
        max_step_tokens=max(question.step_tokens),
        max_running=question.max_running,
    )


def _text(options: argparse.Namespace, question: Question, answer: Answer) -> str:
    if options.emit is not None and answer.plans:
        if options.rank > len(answer.plans):
            raise ConfigInvalid(f"--rank {options.rank}: only {len(answer.plans)} plans hold")
        return plan_emit.emitted(answer.plans[options.rank - 1], options.emit)
    if options.json:
        return json.dumps(plan_page.answer_tree(question, answer), indent=1) + "\n"
    return "".join(line + "\n" for line in plan_page.table_lines(question, answer))


def _write(text: str, file: Path | None) -> None:
    if file is None:
        sys.stdout.write(text)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigInvalid(f"{file}: {error.strerror}") from None


def _workload(options: argparse.Namespace) -> PlanWorkload:
    lengths = [LengthSpread(*pair) if pair else None for pair in (options.input_tokens, options.output_tokens)]
    if options.trace is not None:
        if any(lengths):
            raise ConfigInvalid("give --trace, or --input-tokens and --output-tokens, not both")
        return from_trace(options.trace, options.rate)
    prompts, outputs = lengths
    if prompts is None or outputs is None:
        raise ConfigInvalid("the workload is not told: give --input-tokens and --output-tokens, or --trace")
    return from_lengths(prompts, outputs, options.rate)


def _question(options: argparse.Namespace, workload: PlanWorkload) -> Question:
    online = workload.rate_per_s is not None
    context = options.context
    if context is None:
        longest = max(prompt + output for prompt, output in workload.lengths)
        context = max(longest, min(DEFAULT_CONTEXT_TOKENS, specs_of(options.model)[0].context_tokens))
    dtypes = tuple(options.dtype.split(",")) if options.dtype else ()
    if unknown := [name for name in dtypes if name not in WEIGHTS.values()]:
        raise ConfigInvalid(f"--dtype {unknown[0]!r}: there are {', '.join(WEIGHTS.values())}")
    kv = {"bf16": ("auto",), "fp8": ("fp8",), None: KV_DTYPES}
    return Question(
        model=options.model,
        hardware=parse_hardware(options.hardware),
        context_tokens=context,
        lengths=workload.lengths,
        rate_per_s=workload.rate_per_s,
        slo=Slo(
            ttft_s=options.ttft or (DEFAULT_TTFT_S if online else math.inf),
            itl_s=options.itl or (DEFAULT_ITL_S if online else math.inf),
            percentile=options.percentile,
        ),
        max_gpus=options.max_gpus,
        max_gpu_hours=options.max_gpu_hours,
        hours=options.hours,
        weights=dtypes,
        kv_dtypes=kv[options.kv_dtype],
        top=options.top,
    )
