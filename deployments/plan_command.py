"""`llama31 plan`: which question do the options ask, and where does the answer go?"""

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
_EPILOG = """examples:
  llama31 plan 70b --hardware 2x8xH100 --input-tokens 1000 --output-tokens 300 --rate 10 --ttft 1 --itl 0.05
  llama31 plan 405b --hardware 2x8xH100,1x8xH200 --trace requests.csv --context 32768 --plot frontier
  llama31 plan 8b --hardware 8xH100 --input-tokens 500:4000 --output-tokens 200:1000 --json
  llama31 plan 70b --hardware 8xH100 --rate 2 --input-tokens 1000 --output-tokens 300 --emit config --out 70b.yaml
"""


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.description = (
        "Ranks the ways to serve a model on given GPUs: fewest GPUs that hold the SLO first or, without --rate, "
        "most output tokens. Says of the others why they fail. Needs no GPU; every figure is modelled."
    )
    parser.epilog, parser.formatter_class = _EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", help="8b, 70b or 405b in every dtype, or one model's full name")
    parser.add_argument(
        "--hardware", required=True, metavar="TEXT", help="2x8xH100-80GB (nodes x GPUs x kind), several with commas"
    )
    parser.add_argument(
        "--context", type=_count, metavar="TOKENS", help="longest sequence (default: 8192 or the workload's)"
    )
    parser.add_argument("--dtype", metavar="LIST", help=f"of the weights: {', '.join(WEIGHTS.values())} (default: all)")
    parser.add_argument("--kv-dtype", choices=("bf16", "fp8"), help="of the KV cache (default: both)")
    load = parser.add_argument_group("workload")
    load.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="Mooncake .jsonl, Azure or arrival_s,input_tokens,output_tokens .csv; .gz too",
    )
    load.add_argument("--input-tokens", type=_spread, metavar="N", help="of a prompt: a number, or P50:P99")
    load.add_argument("--output-tokens", type=_spread, metavar="N", help="of an answer: a number, or P50:P99")
    load.add_argument(
        "--rate", type=_positive, metavar="R", help="requests/s (default: a trace's own; else as much as possible)"
    )
    slo = parser.add_argument_group("service level")
    slo.add_argument("--ttft", type=_positive, metavar="SECONDS", help="to the first token (default with a rate: 2)")
    slo.add_argument("--itl", type=_positive, metavar="SECONDS", help="between tokens (default with a rate: 0.1)")
    slo.add_argument(
        "--percentile", type=_percentile, default=0.99, metavar="P", help="that must hold it (default: 99)"
    )
    budget = parser.add_argument_group("budget")
    budget.add_argument("--max-gpus", type=_count, metavar="N", help="at the same time")
    budget.add_argument("--max-gpu-hours", type=_positive, metavar="H", help="over --hours")
    budget.add_argument("--hours", type=_positive, default=24.0, metavar="H", help="that the rate lasts (default: 24)")
    out = parser.add_argument_group("output")
    out.add_argument("--top", type=_count, default=5, metavar="N", help="plans to rank (default: 5)")
    out.add_argument("--json", action="store_true", help="print JSON; `llama31 verify --plan` reads it")
    out.add_argument("--plot", type=Path, metavar="FILE", help="draw the frontier as FILE.png and FILE.svg")
    out.add_argument(
        "--emit", choices=("config", "values"), help="print a plan as deploy config or Helm values instead"
    )
    out.add_argument("--rank", type=_count, default=1, metavar="N", help="which plan to emit (default: 1, the best)")
    out.add_argument("--out", type=Path, metavar="FILE", help="write there, not to standard output")
    parser.set_defaults(run=run_plan)


def run_plan(options: argparse.Namespace) -> int:
    """Plans. Raises: ConfigInvalid."""
    workload = _workload(options)
    question = _question(options, workload)
    began_s = time.monotonic()

    def progress(line: str) -> None:
        print(f"[{time.monotonic() - began_s:5.1f} s] {line}", file=sys.stderr, flush=True)

    predict = SimulatedPrediction(workload, Policies(PredictedTtft, lambda: PrefixIndex(INDEX_BLOCKS)))
    answer = find_plans(question, cost_of, predict, progress)
    if options.plot is not None:
        from deployments.plan_plot import draw_frontier

        for file in draw_frontier(question, answer, cost_of, options.plot):
            progress(f"drew {file}")
    _write(_text(options, question, answer), options.out)
    if answer.plans:
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
    return "".join(line + "\n" for line in plan_page.table_lines(answer))


def _write(text: str, file: Path | None) -> None:
    if file is None:
        sys.stdout.write(text)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigInvalid(f"{file}: {error.strerror}") from None


def _workload(options: argparse.Namespace) -> PlanWorkload:
    lengths = (options.input_tokens, options.output_tokens)
    if options.trace is not None:
        if any(lengths):
            raise ConfigInvalid("give --trace, or --input-tokens and --output-tokens, not both")
        return from_trace(options.trace, options.rate)
    if not all(lengths):
        raise ConfigInvalid("the workload is not told: give --input-tokens and --output-tokens, or --trace")
    return from_lengths(*lengths, options.rate)


def _question(options: argparse.Namespace, workload: PlanWorkload) -> Question:
    online = workload.rate_per_s is not None
    context = options.context
    if context is None:
        longest = max(prompt + output for prompt, output in workload.lengths)
        context = max(longest, min(8192, specs_of(options.model)[0].context_tokens))
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


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _percentile(text: str) -> float:
    share = _positive(text) / 100
    if share >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentile between 0 and 100")
    return share


def _spread(text: str) -> LengthSpread:
    p50, _, p99 = text.partition(":")
    spread = LengthSpread(_count(p50), _count(p99) if p99 else _count(p50))
    if spread.p99_tokens < spread.p50_tokens:
        raise argparse.ArgumentTypeError(f"{text!r}: the 99th percentile is below the median")
    return spread
