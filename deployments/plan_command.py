"""`llama31 plan`: with which options is the planner asked?"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from cluster.layouts import WEIGHTS

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
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    """Here, for the planner's tables take as long to import as all other commands together."""
    from deployments.plan_run import run_plan

    return run_plan(options)


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


def _spread(text: str) -> tuple[int, int]:
    """Median and 99th percentile."""
    p50, _, p99 = text.partition(":")
    spread = _count(p50), _count(p99 or p50)
    if spread[1] < spread[0]:
        raise argparse.ArgumentTypeError(f"{text!r}: the 99th percentile is below the median")
    return spread
