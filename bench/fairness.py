"""Does one tenant's flood hold up the others? ServeGen's tenants, its heaviest at ten times its rate, virtual time.

`python -m bench.fairness [--quick] [--save]`; the last line is one JSON object with figures, targets and "ok".
"""

from __future__ import annotations

import argparse
import bisect
import csv
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.fairness_fleet import Asked, Engine, run_virtually, serve, slowed
from bench.results_page import save_page
from cluster.policy import StepSpeed

DATA = Path(__file__).parent / "data"
# 70B in bfloat16, TP4 on H100 (SXM, 80 GB): 141 GB of weights and 320 KiB of KV a token over 4 x 3.35 TB/s at 0.7 of
# it; 2 x 70.6e9 FLOP a prompt token over 4 x 989 TFLOP/s at 0.5 of it; KV tokens as vLLM logs them for this plan.
SPEED = StepSpeed(0.015, 7.1e-5, 1e-5, 3.5e-8, 8192)
KV_TOKENS = 461_376
REPLICAS = 4
# Of the fleet's capacity, by all tenants at their usual rates.
LOAD = 0.7
FLOOD = 10
SEED = 5
# Gamma gaps with more put thousands of requests into one moment, which is a flood of its own.
MAX_CV = 4.0
TARGETS = {
    "m-large_p99_ttft_ratio": ("<=", 1.2),
    "m-mid_p99_ttft_ratio": ("<=", 1.2),
    "m-large_others_refused": ("<=", 0),
    "m-mid_others_refused": ("<=", 0),
}
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class TenantRate:
    """One of ServeGen's clients: its part of all requests, and how bursty it is."""

    name: str
    share: float
    cv: float


class Lengths:
    """Draws prompt and output lengths by the percentiles of one of ServeGen's models."""

    def __init__(self, model: str) -> None:
        self._points: dict[str, list[tuple[float, float]]] = {"input_tokens": [], "output_tokens": []}
        for row in rows("servegen_lengths.csv", ("model", "field", "percentile", "tokens")):
            if row["model"] == model:
                self._points[row["field"]].append((float(row["percentile"]), float(row["tokens"])))

    def draw(self, dice: random.Random) -> tuple[int, int]:
        """(prompt, output) tokens."""
        return self._one("input_tokens", dice), self._one("output_tokens", dice)

    def _one(self, field: str, dice: random.Random) -> int:
        points = self._points[field]
        at = dice.uniform(points[0][0], points[-1][0])
        right = max(1, bisect.bisect_left(points, (at, 0.0)))
        (x0, y0), (x1, y1) = points[right - 1], points[right]
        return max(1, round(y0 + (y1 - y0) * (at - x0) / (x1 - x0)))


def rows(name: str, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """A data file. Raises: ValueError if it lacks a column."""
    with (DATA / name).open(newline="") as file:
        reader = csv.DictReader(file)
        if missing := set(columns) - set(reader.fieldnames or ()):
            raise ValueError(f"{name} lacks the columns {', '.join(sorted(missing))}")
        yield from reader


def tenants_of(model: str) -> list[TenantRate]:
    """The heaviest first."""
    table = rows("servegen_tenants.csv", ("model", "tenant", "rate_share", "cv"))
    found = [TenantRate(r["tenant"], float(r["rate_share"]), float(r["cv"])) for r in table if r["model"] == model]
    return sorted(found, key=lambda tenant: -tenant.share)


def arrivals(tenant: TenantRate, rate_per_s: float, seconds: float, lengths: Lengths) -> list[Asked]:
    """A renewal process with gamma gaps of that coefficient of variation; the same for every rate but for its pace."""
    dice = random.Random(f"{SEED}/{tenant.name}")
    shape = 1 / min(tenant.cv, MAX_CV) ** 2
    gaps = (dice.gammavariate(shape, 1 / (rate_per_s * shape)) for _ in itertools.count())
    times = itertools.takewhile(lambda at_s: at_s < seconds, itertools.accumulate(gaps))
    return [Asked(at_s, tenant.name, *lengths.draw(dice)) for at_s in times]


def capacity_per_s(lengths: Lengths, metrics: Any) -> float:
    """Requests a second of a fleet that has all of them at once, after its first tenth."""
    dice = random.Random(SEED)
    asked = [Asked(0.0, "all", *lengths.draw(dice)) for _ in range(6000)]
    run_virtually(serve(asked, engines(SPEED), metrics, is_fair=False))
    starts = sorted(one.ttft_s for one in asked)
    return len(starts) * 0.8 / (starts[int(len(starts) * 0.9)] - starts[int(len(starts) * 0.1)])


def engines(speed: StepSpeed, share: float = 1.0) -> list[Engine]:
    """The whole fleet, or a share of each replica."""
    return [Engine(f"r{n}", slowed(speed, share), int(KV_TOKENS * share)) for n in range(REPLICAS)]


def quantile(values: Sequence[float], share: float) -> float:
    """The value that so large a share is below; 0 of none."""
    return sorted(values)[int(len(values) * share)] if values else 0.0


def play(model: str, seconds: float, metrics: Any) -> Iterator[tuple[str, Figures]]:
    """(situation, its figures): others alone at their share, then with the flood: first come first served, and fair."""
    lengths, tenants = Lengths(model), tenants_of(model)
    rate_per_s = LOAD * capacity_per_s(lengths, metrics)
    heaviest, others = tenants[0], tenants[1:]
    calm = [one for t in others for one in arrivals(t, rate_per_s * t.share, seconds, lengths)]
    flood = arrivals(heaviest, FLOOD * rate_per_s * heaviest.share, seconds, lengths)
    # With equal weights the flooding tenant is owed one part of as many as there are.
    share = 1 - 1 / len(tenants)
    for name, asked, fleet, is_fair in (
        ("others alone at their share", calm, engines(SPEED, share), True),
        ("flood, first come first served", [*calm, *flood], engines(SPEED), False),
        ("flood, fair", [*calm, *flood], engines(SPEED), True),
    ):
        fresh = sorted((replace(one) for one in asked), key=lambda one: one.arrival_s)
        run_virtually(serve(fresh, fleet, metrics, is_fair))
        yield name, figures_of(fresh, heaviest.name)


def figures_of(asked: Sequence[Asked], heaviest: str) -> Figures:
    """What became of the others' requests, and of the heaviest tenant's."""
    others = [one for one in asked if one.tenant != heaviest]
    flood = [one for one in asked if one.tenant == heaviest]
    answered, flooded = ([one.ttft_s for one in part if not one.refused] for part in (others, flood))
    return {
        "others_requests": len(others),
        "others_ttft_p50_s": quantile(answered, 0.5),
        "others_ttft_p99_s": quantile(answered, 0.99),
        "others_refused": len(others) - len(answered),
        "flood_requests": len(flood),
        "flood_refused": len(flood) - len(flooded),
        "flood_ttft_p50_s": quantile(flooded, 0.5),
    }


def row(model: str, name: str, figures: Figures) -> str:
    """One line of the table."""
    return (
        f"| {model} | {name} | {figures['others_requests']:,} | {figures['others_ttft_p50_s']:.2f} "
        f"| {figures['others_ttft_p99_s']:.2f} | {figures['others_refused']} | {figures['flood_requests']:,} "
        f"| {figures['flood_refused']:,} | {figures['flood_ttft_p50_s']:.1f} |"
    )


def main() -> int:
    """Prints the table and the summary."""
    parser = argparse.ArgumentParser(prog="python -m bench.fairness", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two simulated minutes instead of ten")
    parser.add_argument("--save", action="store_true", help="write bench/results/fairness.md")
    options = parser.parse_args()
    seconds = 120.0 if options.quick else 600.0
    table = [
        "| tenants | situation | others' requests | TTFT p50, s | p99, s | refused | flood | refused | TTFT p50, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(table), flush=True)
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="llama31-bench-") as directory:
        metrics = process_metrics(directory)
        for model in ("m-large", "m-mid"):
            found: dict[str, Figures] = {}
            for name, seen in play(model, seconds, metrics):
                found[name] = seen
                table.append(row(model, name, seen))
                print(table[-1], flush=True)
            alone, fifo, fair = found.values()
            figures[f"{model}_p99_ttft_ratio"] = fair["others_ttft_p99_s"] / alone["others_ttft_p99_s"]
            figures[f"{model}_p99_ttft_ratio_fifo"] = fifo["others_ttft_p99_s"] / alone["others_ttft_p99_s"]
            figures[f"{model}_others_refused"] = fair["others_refused"]
    figures = {name: round(value, 3) for name, value in figures.items()}
    ok = all(figures[name] <= bound for name, (_, bound) in TARGETS.items())
    result = {"figures": figures, "targets": TARGETS, "ok": ok}
    if options.save:
        command = "python -m bench.fairness" + (" --quick" if options.quick else "") + " --save"
        save_page("fairness", "Fairness under a flood", command, METHOD, table, result)
    print(json.dumps(result))
    return 0 if ok else 1


def process_metrics(directory: str) -> Any:
    """The instruments, which write their files there."""
    import os

    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    from deployments.metrics import Metrics

    return Metrics()


METHOD = (
    "Modelled: production's admission classes in virtual time before four modelled engines (70B bf16 TP4 on H100). "
    "Tenants, their bursts and lengths are ServeGen's (bench/data/README.md); all tenants together are 0.7 of the "
    "fleet's capacity, then the heaviest one sends ten times as much. *Alone at their share*: without that tenant, on "
    "a fleet that is smaller by the share it is owed."
)

if __name__ == "__main__":
    sys.exit(main())
