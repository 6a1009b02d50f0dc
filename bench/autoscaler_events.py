"""Does the fluid back-test say the same as the event simulator? Two hours of demand, request by request.

The same policy object and rules on both. In the simulator requests of one kind arrive by chance at the rates; one
replica's capacity is the rate at which its prompts alone keep it busy for the share that the SLO leaves. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.autoscaler_backtest import ALONE_S, SHIPPED_PRICE, SLO_S
from bench.demand import STEP_S, Rates, as_replicas, read_rates
from bench.fluid_fleet import run
from bench.results_page import save_page
from bench.scaling_rules import Ours, our_rules
from cluster.cost import CostModel
from cluster.hardware import get_gpu
from cluster.report import Slo
from cluster.sim_fleet import Scaling, SimFleet
from cluster.sim_ingress import Policies
from cluster.simulator import simulate
from cluster.workload import Request, Workload
from deployments.policies.autoscaler import ScalingRules, SloAutoscaler
from deployments.policies.router import PredictedTtft
from llama31.parallel import ParallelPlan
from llama31.specs import get_spec

MODEL, PEAK, ROOM = "m-large", 8, 12
# Prompts make nearly all of the work, so that work has one dimension as in the fluid.
PROMPT_TOKENS, OUTPUT_TOKENS = 4000, 8
LEADS_S = (65.0, 300.0)
HEAD = "| start s | model | in time | replica-hours |\n|---|---|---|---|"


def busiest(rates: Rates, steps: int) -> Rates:
    """The window of so many steps that holds the largest jump upwards, a quarter into it."""
    jump = int(np.argmax(np.diff(np.log(rates))[steps : len(rates) - steps])) + steps
    return rates[jump - steps // 4 : jump - steps // 4 + steps]


def arrivals(load: Rates, requests_per_s: float, seed: int = 1) -> Iterator[Request]:
    """Poisson within each step."""
    dice = np.random.default_rng(seed)
    for step, replicas in enumerate(load):
        count = int(dice.poisson(replicas * requests_per_s * STEP_S))
        for offset_s in np.sort(dice.uniform(0, STEP_S, count)):
            yield Request(step * STEP_S + float(offset_s), PROMPT_TOKENS, OUTPUT_TOKENS)


def compare(load: Rates, lead_s: float) -> dict[str, tuple[float, float]]:
    """Model -> share in time, replica-hours."""
    cost = CostModel(get_spec("llama-3.1-70b"), ParallelPlan(4, 1), get_gpu("H100"))
    speed = cost.speed()
    step_tokens = speed.max_step_tokens
    prompt_tokens_per_s = step_tokens / (speed.fixed_s + step_tokens * speed.prefill_token_s)
    capacity = prompt_tokens_per_s / PROMPT_TOKENS * 0.9
    (fluid,) = run(
        [Ours([our_rules(SLO_S, lead_s, ROOM, SHIPPED_PRICE, late_yield=False)])], load, lead_s, SLO_S - ALONE_S, ROOM
    )
    rules = ScalingRules(
        prompt_tokens_per_s=capacity * PROMPT_TOKENS,
        output_tokens_per_s=1e9,
        slo_ttft_s=SLO_S,
        lead_s=lead_s,
        min_replicas=1,
        max_replicas=ROOM,
        late_price=SHIPPED_PRICE,
        # The simulator's replicas serve first come, first served.
        late_yield=False,
    )
    scaling = Scaling(SloAutoscaler(rules), ROOM, tick_s=10.0, history_ticks=3)
    fleet = SimFleet(cost, int(np.ceil(load[0] * 1.2)), start_s=lead_s, scaling=scaling)
    report = simulate(Workload(arrivals(load, capacity)), fleet, Policies(PredictedTtft))
    in_time = float(np.mean(report.ttft_s <= Slo(SLO_S).ttft_s))
    return {"fluid": (fluid.attainment, fluid.replica_hours), "events": (in_time, report.gpu_hours)}


def main() -> int:
    """Both lead times; 0 always: there is no target, the page says how far they are apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one hour instead of two")
    parser.add_argument("--save", action="store_true", help="write the page into bench/results")
    options = parser.parse_args()
    load = busiest(as_replicas(read_rates()[MODEL], PEAK), 6 if options.quick else 12)
    print(HEAD, flush=True)
    table, figures = [HEAD], dict[str, Any]()
    for lead_s in LEADS_S:
        for name, (in_time, hours) in compare(load, lead_s).items():
            figures[f"{name} {lead_s:g} s"] = {"attainment": round(in_time, 4), "replica_hours": round(hours, 2)}
            table.append(f"| {lead_s:g} | {name} | {in_time:.2%} | {hours:.1f} |")
            print(table[-1], flush=True)
    result = {"figures": figures, "targets": {}, "ok": True}
    if options.save:
        method = (
            f"Modelled: {MODEL}, the window with the largest jump, peak {PEAK} replicas of 70B TP4, requests of "
            f"{PROMPT_TOKENS} and {OUTPUT_TOKENS} tokens. Replica-hours of the simulator end with its last request."
        )
        command = f"python -m bench.autoscaler_events{' --quick' if options.quick else ''} --save"
        save_page("autoscaler_events", "The fluid back-test beside the simulator", command, method, table, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
