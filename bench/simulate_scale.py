"""How long does the simulator take for 1,000 replicas and 1,000,000 requests of 500 tokens, on one core?

250 prompt and 250 output tokens, all prompts different; Llama 3.1 8B on one H100 a replica, at 10 requests a second
each. Our router is shown two candidates drawn for each request (power of two choices): asked about all 1,000, the
policy alone would take most of the time. The last line is one JSON object with the figures, their targets and "ok".
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from bench.results_page import save_page
from cluster.cost import CostModel
from cluster.hardware import get_gpu
from cluster.report import Report
from cluster.sim_fleet import SimFleet, View
from cluster.sim_ingress import Policies
from cluster.simulator import simulate
from cluster.workload import Workload, poisson
from deployments.policies.router import PredictedTtft
from llama31.parallel import ParallelPlan
from llama31.specs import get_spec

PROMPT_TOKENS = OUTPUT_TOKENS = 250
REQUESTS_PER_REPLICA_S = 10.0
TARGETS = {"wall_s": ("<=", 600.0), "finished_share": (">=", 1.0)}


def run(replicas: int, requests: int) -> tuple[Report, float, float]:
    """The report, and the seconds that it took: by the clock, and of CPU."""
    cost = CostModel(get_spec("llama-3.1-8b"), ParallelPlan(1, 1), get_gpu("H100"))
    arrivals = poisson(REQUESTS_PER_REPLICA_S * replicas, requests, [(PROMPT_TOKENS, OUTPUT_TOKENS)])
    fleet = SimFleet(cost, replicas, view=View(candidates=2))
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    report = simulate(Workload(arrivals), fleet, Policies(PredictedTtft))
    return report, time.perf_counter() - wall_s, time.process_time() - cpu_s


def main() -> int:
    """Runs it; 0 if every target is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 replicas, 50,000 requests")
    parser.add_argument("--save", action="store_true", help="write the page into bench/results")
    options = parser.parse_args()
    replicas, requests = (100, 50_000) if options.quick else (1_000, 1_000_000)
    report, wall_s, cpu_s = run(replicas, requests)
    figures: dict[str, Any] = {
        "replicas": replicas,
        "requests": requests,
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "requests_per_s": round(requests / wall_s),
        "simulated_tokens_per_s": round(requests * (PROMPT_TOKENS + OUTPUT_TOKENS) / wall_s),
        "us_per_request": round(1e6 * wall_s / requests),
        "finished_share": report.requests / requests,
        "simulated_s": round(report.duration_s, 1),
        "events": report.events,
        "ttft_p99_s": round(report.ttft_percentile_s(0.99), 4),
        "itl_p99_s": round(report.itl_percentile_s(0.99), 4),
        "load_max_over_mean": round(report.load_max_over_mean, 3),
    }
    met = {"wall_s": wall_s <= TARGETS["wall_s"][1], "finished_share": report.requests == requests}
    result = figures | {
        "targets": {n: f"{s} {v}" for n, (s, v) in TARGETS.items()},
        "met": met,
        "ok": all(met.values()),
    }
    if options.save:
        table = ["| figure | value |", "|---|---|", *(f"| {name} | {value:,} |" for name, value in figures.items())]
        command = f"python -m bench.simulate_scale{' --quick' if options.quick else ''} --save"
        save_page("simulate_scale", "How fast the simulator is", command, "One process, one core.", table, result)
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
