"""What does our autoscaler cost and miss on 14 days of real demand, beside other rules and beside a clairvoyant plan?

A fluid back-test of the production policy (bench/fluid_fleet.py), in production's order of serving and, beside it,
first come, first served; all rules in both. The last line is one JSON object with the figures, their targets and "ok",
which is about production's order.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from bench.demand import RATES, STEPS_A_DAY, Rates, as_replicas, clairvoyant_s, read_rates
from bench.fluid_fleet import FluidRule, Order, Outcome, run
from bench.results_page import RESULTS, save_page
from bench.scaling_rules import Hpa, LastRate, Ours, ServeDefault, StaticPeak, our_rules

# MLPerf inference, Llama 2 70B server: first token within 2 s; one alone in an idle replica takes 0.4 s of them.
SLO_S, ALONE_S = 2.0, 0.4
# 70B on four GPUs with streamed weights and cached compilation, and without both (measured by others).
LEADS_S = (65.0, 300.0)
PEAKS = (8, 30)
# Every rule may ask for half more than the peak.
ROOM_OVER_PEAK = 1.5
# Production's order first: what can no longer be in time yields.
ORDERS: tuple[Order, ...] = ("late yield", "first come")
SHIPPED_PRICE = 16.0
PRICES: dict[Order, tuple[float, ...]] = {"late yield": (8.0, SHIPPED_PRICE, 40.0), "first come": (SHIPPED_PRICE,)}
# Fine, as what lies between two of them is taken from a straight line.
SHARES_OVER_RATE = (*(share / 50 for share in range(31)), 0.7, 0.8, 1.0, 1.4)
SHARES_IN_USE = (0.55, 0.7, 0.85)
TARGETS = {"attainment": (">=", 0.99), "over_clairvoyant": ("<=", 1.15), "over_last_rate": ("<=", 0.90)}
HEAD = (
    "| demand | peak | start s | in time | GPU-hours / clairvoyant | / best last rate | reversals a day "
    "| late by s | last rate at 99 % | HPA | Serve | static peak |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, slots=True)
class Case:
    """One demand on one kind of fleet, and how every rule fared."""

    name: str
    order: Order
    peak: int
    lead_s: float
    clairvoyant_hours: float
    outcomes: Sequence[Outcome]

    def of(self, prefix: str) -> list[Outcome]:
        """The settings of one rule."""
        return [outcome for outcome in self.outcomes if outcome.label.startswith(prefix)]

    @property
    def ours(self) -> Outcome:
        """With the shipped setting."""
        return next(o for o in self.outcomes if o.label == f"ours, late_price {SHIPPED_PRICE:g}")

    def hours_at(self, prefix: str, attainment: float) -> float | None:
        """Replica-hours of a rule's best settings at an attainment, between settings by a straight line."""
        settings = sorted((o.attainment, o.replica_hours) for o in self.of(prefix))
        shares, hours = zip(*settings, strict=True)
        # A setting that attains less for more is never the best one.
        best = np.minimum.accumulate(np.array(hours)[::-1])[::-1]
        return float(np.interp(attainment, shares, best)) if attainment <= shares[-1] else None


def back_test(name: str, load: Rates, peak: int, lead_s: float, order: Order) -> Case:
    """All rules at once."""
    room = int(ROOM_OVER_PEAK * peak)
    rules: list[FluidRule] = [
        Ours([our_rules(SLO_S, lead_s, room, price, late_yield=order == "late yield") for price in PRICES[order]]),
        LastRate(SHARES_OVER_RATE),
        Hpa(SHARES_IN_USE),
        ServeDefault(SHARES_IN_USE, room),
        StaticPeak(peak),
    ]
    outcomes = run(rules, load, lead_s, SLO_S - ALONE_S, room, order)
    return Case(name, order, peak, lead_s, clairvoyant_s(load, lead_s) / 3600, outcomes)


def demands(rates: dict[str, Rates], is_quick: bool) -> dict[str, Rates]:
    """What is played: every model whole, and the rows that no constant was chosen on."""
    if is_quick:
        return {"m-mid, 3 days": rates["m-mid"][: 3 * STEPS_A_DAY]} if "m-mid" in rates else dict(rates)
    second_week = {"m-small, second week": rates["m-small"][7 * STEPS_A_DAY :]} if "m-small" in rates else {}
    return rates | second_week


def row(case: Case) -> str:
    """One line of the table."""
    ours, clairvoyant = case.ours, case.clairvoyant_hours

    def at(prefix: str) -> str:
        hours = case.hours_at(prefix, TARGETS["attainment"][1])
        return "never" if hours is None else f"{hours / clairvoyant:.2f}"

    static = case.of("static")[0]
    cells = [case.name, case.peak, f"{case.lead_s:g}", f"{ours.attainment:.2%}"]
    cells += [f"{ours.replica_hours / clairvoyant:.3f}", f"{_over_last_rate(case):.3f}", f"{ours.reversals_a_day:.0f}"]
    cells += [f"{ours.late_wait_s:.0f}"]
    cells += [at("last rate"), at("HPA"), at("Serve"), f"{static.replica_hours / clairvoyant:.2f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def _over_last_rate(case: Case) -> float:
    hours = case.hours_at("last rate", case.ours.attainment)
    return case.ours.replica_hours / hours if hours else 0.0


def summary(cases: Iterable[Case]) -> dict[str, Any]:
    """Each figure of each case, and which targets hold."""
    holds = {">=": float.__ge__, "<=": float.__le__}
    figures: dict[str, dict[str, float]] = {}
    met: dict[str, dict[str, bool]] = {}
    for case in cases:
        name = f"{case.name} / {case.peak} / {case.lead_s:g} s / {case.order}"
        figures[name] = {
            "attainment": round(float(case.ours.attainment), 4),
            "over_clairvoyant": round(case.ours.replica_hours / case.clairvoyant_hours, 3),
            "over_last_rate": round(_over_last_rate(case), 3),
            "reversals_a_day": round(case.ours.reversals_a_day, 1),
            "late_wait_s": round(float(case.ours.late_wait_s), 1),
        }
        met[name] = {key: holds[sign](figures[name][key], limit) for key, (sign, limit) in TARGETS.items()}
    by_order = {order: [one for name, one in met.items() if name.endswith(order)] for order in ORDERS}
    counts = {
        order: {key: f"{sum(one[key] for one in some)} of {len(some)}" for key in TARGETS}
        for order, some in by_order.items()
    }
    is_ok = all(all(one.values()) for one in by_order["late yield"])
    targets = {key: f"{sign} {limit}" for key, (sign, limit) in TARGETS.items()}
    return {"figures": figures, "targets": targets, "met": met, "met_count": counts, "ok": is_ok}


def plot(cases: Sequence[Case], stem: Path) -> None:
    """The frontier of every case: share of late requests against replica-hours over the clairvoyant plan's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    across = len(PEAKS) * len(LEADS_S)
    figure, axes = pyplot.subplots(-(-len(cases) // across), across, figsize=(16, 3.6 * (len(cases) // across + 1)))
    for case, axis in zip(cases, np.ravel(axes), strict=False):
        for prefix, mark in (("ours", "o-"), ("last rate", "s--"), ("HPA", "^:"), ("Serve", "v:"), ("static", "x")):
            points = sorted((o.replica_hours / case.clairvoyant_hours, 1 - o.attainment) for o in case.of(prefix))
            axis.plot(*zip(*points, strict=True), mark, label=prefix, markersize=4)
        axis.axhline(0.01, color="grey", linewidth=0.7)
        axis.axvline(1.15, color="grey", linewidth=0.7)
        axis.set(yscale="symlog", xlim=(0.9, 2.2), title=f"{case.name}, peak {case.peak}, start {case.lead_s:g} s")
        axis.set_yscale("symlog", linthresh=1e-4)
        axis.set_ylim(0, 0.3)
    np.ravel(axes)[0].set(ylabel="late requests", xlabel="GPU-hours / clairvoyant plan")
    np.ravel(axes)[0].legend(fontsize=7)
    figure.tight_layout()
    for suffix in (".svg", ".png"):
        figure.savefig(stem.with_suffix(suffix), dpi=70)


def main() -> int:
    """Plays everything; 0 if every target is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three days of one model, about a minute")
    parser.add_argument("--save", action="store_true", help="write table and plots into bench/results")
    parser.add_argument("--rates", type=Path, default=RATES, metavar="CSV", help="another demand: model, t, rate")
    options = parser.parse_args()
    began_s = time.monotonic()
    rates = read_rates(options.rates)
    cases = []
    for order in ORDERS:
        print(f"{order}\n{HEAD}", flush=True)
        for name, series in demands(rates, options.quick).items():
            for peak, lead_s in product(PEAKS, LEADS_S):
                cases.append(back_test(name, as_replicas(series, peak), peak, lead_s, order))
                print(f"{row(cases[-1])}  [{time.monotonic() - began_s:.0f} s]", flush=True)
    result = summary(cases)
    if options.save:
        method = (
            "Modelled: a fluid in 5 s ticks, carried backlog, piecewise constant rates; a request is late when its "
            f"predicted TTFT exceeds {SLO_S:g} s. GPU-hours count from the start of a replica. Late yield: requests "
            "that cannot be in time wait behind those that can, with a tenth of the work at least, as in production's "
            'admission. "Late by" is the mean wait of late work.'
        )
        command = f"python -m bench.autoscaler_backtest{' --quick' if options.quick else ''} --save"
        save_page("autoscaler_backtest", "The autoscaler on 14 days of demand", command, method, _table(cases), result)
        plot([case for case in cases if case.order == "late yield"], RESULTS / "autoscaler_backtest")
    print(json.dumps(result))
    return 0 if result["ok"] else 1


def _table(cases: Sequence[Case]) -> list[str]:
    lines = []
    for order in ORDERS:
        lines += [f"## {order.capitalize()}", "", HEAD, *(row(case) for case in cases if case.order == order), ""]
    return [*lines, "![Frontier, late yield](autoscaler_backtest.svg)"]


if __name__ == "__main__":
    sys.exit(main())
