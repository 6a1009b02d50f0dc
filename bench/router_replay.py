"""What do routing policies make of a real trace's prefixes: hits, balance, and the time of a decision?

Mooncake's conversation trace (or `--trace`, or LLAMA31_TRACE) over 8 replicas with small and large caches; ours and
the baselines in the same run. The last line is one JSON object with the figures, their targets and "ok".
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import decision_time
from bench.chart import bars
from bench.decision_time import Timing, decision_times
from bench.prefix_trace import PACKAGED, BadTraceError, TracedRequest, made_up, read_trace
from bench.replay_fleet import Replayed, replay
from bench.results_page import RESULTS, save_page
from deployments.policies.router import PredictedTtft
from deployments.policies.router_baselines import BASELINES

REPLICAS = 8
KV_TOKENS = {"450k": 450_000, "2M": 2_000_000}
# Best hit ratios of a separate replay of the packaged trace, made before this router: sticky with a load guard at
# 450k, a hash of the first two blocks at 2M.
EARLIER_BEST = {"450k": 0.159, "2M": 0.336}
TARGETS = {
    "hit_to_best_450k": (">=", 0.95),
    "hit_to_best_2M": (">=", 0.95),
    "max_load_450k": ("<=", 1.1),
    "max_load_2M": ("<=", 1.1),
    "most_requests": ("<=", 0.25),
    "decide_p99_us_8k": ("<=", 200.0),
    "decide_p99_us_128k": ("<=", 2000.0),
}
HEAD = (
    "| KV tokens | policy | hit ratio | max / mean load | most of the requests | TTFT mean, s | TTFT p99, s |\n"
    "|---|---|---|---|---|---|---|"
)
TIME_HEAD = "| what | p50, us | p99, us | p99 by the wall clock, us |\n|---|---|---|---|"

Rows = dict[tuple[str, str], Replayed]


def replays(trace: Sequence[TracedRequest]) -> Iterator[tuple[tuple[str, str], Replayed]]:
    """(Cache size, policy) -> what came of it."""
    for size, kv_tokens in KV_TOKENS.items():
        for name, make in BASELINES.items():
            yield (size, name), replay(trace, [make()], REPLICAS, kv_tokens)
        for ingresses in (1, 2, 4):
            name = "ours" if ingresses == 1 else f"ours, {ingresses} ingresses"
            yield (size, name), replay(trace, [PredictedTtft() for _ in range(ingresses)], REPLICAS, kv_tokens)


def row(key: tuple[str, str], found: Replayed) -> str:
    """One line of the table."""
    return (
        f"| {key[0]} | {key[1]} | {found.hit_ratio:.1%} | {found.max_load:.3f} | {found.most_requests:.1%} "
        f"| {found.ttft_mean_s:.3f} | {found.ttft_p99_s:.2f} |"
    )


def time_row(name: str, timing: Timing) -> str:
    """One line of the other table."""
    return f"| {name} | {timing.p50_us:.0f} | {timing.p99_us:.0f} | {timing.wall_p99_us:.0f} |"


def summary(rows: Rows, times: dict[str, Timing], is_packaged: bool) -> dict[str, Any]:
    """The figures that have targets, and what several ingresses lose."""
    out: dict[str, Any] = {}
    for size in KV_TOKENS:
        ours = rows[size, "ours"]
        best = max(rows[size, name].hit_ratio for name in BASELINES)
        if is_packaged:
            best = max(best, EARLIER_BEST[size])
        out[f"hit_{size}"] = ours.hit_ratio
        out[f"hit_to_best_{size}"] = ours.hit_ratio / best if best else 1.0
        out[f"max_load_{size}"] = ours.max_load
        for ingresses in (2, 4):
            several = rows[size, f"ours, {ingresses} ingresses"]
            out[f"hit_loss_{size}_{ingresses}_ingresses"] = ours.hit_ratio - several.hit_ratio
            out[f"max_load_{size}_{ingresses}_ingresses"] = several.max_load
            out[f"ttft_ratio_{size}_{ingresses}_ingresses"] = several.ttft_mean_s / ours.ttft_mean_s
    out["most_requests"] = max(found.most_requests for (_, name), found in rows.items() if name.startswith("ours"))
    for name, timing in times.items():
        what, tokens = name.split()
        out[f"{what}_p99_us_{tokens}"] = timing.p99_us
    out = {name: round(value, 4) for name, value in out.items()}
    holds = {">=": float.__ge__, "<=": float.__le__}
    met = {name: holds[sign](float(out[name]), limit) for name, (sign, limit) in TARGETS.items()}
    return out | {"targets": {n: f"{s} {v}" for n, (s, v) in TARGETS.items()}, "met": met, "ok": all(met.values())}


def save(rows: Rows, times: dict[str, Timing], result: dict[str, Any], command: str) -> None:
    """Tables, chart and summary into bench/results."""
    method = (
        "Hit ratios and loads follow from the trace alone; TTFT is modelled (prompts one after another at "
        "14,000 tokens/s, no interference) and compares policies, nothing else. Decision times are the thread's own "
        f"CPU time for {decision_time.REPLICAS} replicas: `decide` is index match and policy, `note` what the index "
        "writes down afterwards, `hash` naming the prompt's blocks."
    )
    table = [HEAD, *(row(key, found) for key, found in rows.items()), ""]
    table += [TIME_HEAD, *(time_row(name, timing) for name, timing in times.items())]
    save_page("router_replay", "What routing makes of a trace's prefixes", command, method, table, result)
    shown = [(f"{name}, {size}", found.hit_ratio, name.startswith("ours")) for (size, name), found in rows.items()]
    (RESULTS / "router_replay.svg").write_text(
        bars("Prompt tokens found in a prefix cache", "share of all prompt tokens; size = KV tokens per replica", shown)
    )


def chosen_trace(option: str | None) -> tuple[list[TracedRequest], bool]:
    """The trace, and whether it is the packaged one."""
    name = option or os.environ.get("LLAMA31_TRACE") or str(PACKAGED)
    if name in ("chat", "agents"):
        return made_up(1, per_s=8.0 if name == "agents" else 3.5, long_systems=name == "agents"), False
    return read_trace(Path(name)), Path(name).resolve() == PACKAGED.resolve()


def main() -> int:
    """Runs everything; 0 if every target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds of the decision's time, under a minute")
    parser.add_argument("--save", action="store_true", help="write tables and chart into bench/results")
    parser.add_argument(
        "--trace",
        help="a file of JSON lines (timestamp in ms, input_length, output_length, hash_ids of 512 tokens), plain or "
        "gzipped, or 'chat' or 'agents' for a made-up one; default: LLAMA31_TRACE, else Mooncake's conversations",
    )
    options = parser.parse_args()
    try:
        trace, is_packaged = chosen_trace(options.trace)
    except BadTraceError as e:
        parser.error(str(e))
    print(HEAD, flush=True)
    rows = {}
    for key, found in replays(trace):
        rows[key] = found
        print(row(key, found), flush=True)
    times = decision_times(options.quick)
    print(TIME_HEAD, *(time_row(name, timing) for name, timing in times.items()), sep="\n", flush=True)
    result = summary(rows, times, is_packaged)
    if options.save:
        save(rows, times, result, "python -m bench.router_replay --save")
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
