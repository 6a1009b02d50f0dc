"""`llama31 verify`: what does the running service do in a window, and how far is it from its plan?"""

from __future__ import annotations

import argparse
import math
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from deployments import commands, service
from deployments.config import read_yaml
from deployments.config_sections import PlannedConfig
from deployments.plan_drift import Percentiles, Planned, Running, RunningReplica, compare, read_planned, table_lines
from llama31.errors import ClusterRefused, ConfigInvalid

if TYPE_CHECKING:
    from deployments.directory import ReplicaRecord

EXIT_DRIFT = 1
ANSWER_S = 5.0
_PLANNED = {
    "kv_tokens": "llama31_planned_kv_tokens",
    "rate_per_s": "llama31_planned_requests_per_second",
    "ttft_p99_s": "llama31_planned_ttft_seconds",
    "itl_p99_s": "llama31_planned_inter_token_seconds",
    "output_tokens_per_s": "llama31_planned_output_tokens_per_second",
}
_NAMES = ("llama31_planned_", "llama31_replica_", "llama31_ttft_", "llama31_inter_token_")


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.description = (
        "Compares the running service with its plan: model, split, replicas, KV tokens, and the times of requests "
        "that finish while it looks. Exits with 1 on drift."
    )
    plan_help = "from `llama31 plan --json` or --emit (default: what the service was deployed with)"
    parser.add_argument("--plan", type=Path, metavar="FILE", help=plan_help)
    parser.add_argument("--rank", type=int, default=1, metavar="N", help="of FILE's plans (default: 1)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="to look at requests (default: 10)")
    parser.add_argument("--port", type=int, help="gRPC port of the service, if several run")
    parser.add_argument("--address", default="", help="a Ray cluster with a service, whoever deployed it")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if not 0 < options.seconds <= 3600:
        raise ConfigInvalid(f"--seconds {options.seconds:g}: between 0 and 3600")
    given = (
        None if options.plan is None else read_planned(read_yaml(str(options.plan)), str(options.plan), options.rank)
    )
    if options.address:
        address, token = options.address, ""
    else:
        running = commands.running_service(options.port)
        address, token = running.ray_address, running.ray_token
    with service.joined(address, token):
        from deployments.deploy import read_directory, read_ingresses

        records, urls = read_directory(), {ingress.metrics for ingress in read_ingresses()} - {""}
    planned, seen = look(records, urls, options.seconds, given)
    rows = list(compare(planned, seen))
    for line in table_lines(rows):
        print(line)
    return EXIT_DRIFT if any(row.state == "drift" for row in rows) else 0


@dataclass
class Numbers:
    """Sums over all nodes: of a histogram's buckets by their bound, of counters and gauges by name."""

    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    buckets: dict[str, dict[float, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))
    planned: dict[str, float] = field(default_factory=dict)
    kv_tokens: dict[str, float] = field(default_factory=dict)


def look(
    records: Iterable[ReplicaRecord],
    urls: Iterable[str],
    seconds: float,
    given: Planned | None,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Planned, Running]:
    """The plan, given or the service's own, and what the metrics say of a window. Raises: ConfigInvalid."""
    pages = sorted(urls)
    before = read_numbers(fetch(url) for url in pages)
    sleep(seconds)
    after = read_numbers(fetch(url) for url in pages)
    replicas = tuple(
        RunningReplica(r.replica_id, r.model, r.plan, r.phase == "ready", after.kv_tokens.get(r.replica_id))
        for r in records
    )
    running = Running(
        replicas=replicas,
        requests_per_s=_count(after, before, "llama31_ttft_seconds") / seconds,
        output_tokens_per_s=(after.sums["decode"] - before.sums["decode"]) / seconds,
        ttft=percentile(after, before, "llama31_ttft_seconds"),
        itl=percentile(after, before, "llama31_inter_token_seconds"),
    )
    return given or own_plan(after.planned), running


def own_plan(planned: Mapping[str, float]) -> Planned:
    """What the ingresses export. Raises: ConfigInvalid if the service was deployed without a plan."""
    try:
        figures = {key: planned[name] for key, name in _PLANNED.items()}
    except KeyError:
        raise ConfigInvalid(
            "the running service was deployed without a plan (`planned` in its configuration): give --plan FILE"
        ) from None
    return Planned(PlannedConfig.model_validate(figures | {"kv_tokens": int(figures["kv_tokens"])}))


def fetch(url: str) -> str:
    """One node's page. Raises: ClusterRefused."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_S) as response:
            return str(response.read().decode())
    except (OSError, ValueError) as error:
        raise ClusterRefused(f"no metrics at {url}: {error}") from None


def read_numbers(pages: Iterable[str]) -> Numbers:
    """What the pages of all nodes say of the service."""
    numbers = Numbers()
    for page in pages:
        # Parsing all of Ray's and vLLM's series would take longer than the rest of the command.
        ours = "".join(line + "\n" for line in page.splitlines() if any(name in line for name in _NAMES))
        for family in text_string_to_metric_families(ours):
            for sample in family.samples:
                _take(numbers, sample.name, sample.labels, sample.value)
    return numbers


def _take(numbers: Numbers, name: str, labels: Mapping[str, str], value: float) -> None:
    if name.endswith("_bucket"):
        numbers.buckets[name.removesuffix("_bucket")][float(labels["le"])] += value
    elif name == "llama31_replica_tokens_total" and labels.get("phase") == "decode":
        numbers.sums["decode"] += value
    elif name == "llama31_replica_kv_total_tokens":
        numbers.kv_tokens[labels["replica"]] = value
    elif name in _PLANNED.values():
        numbers.planned[name] = value


def _count(after: Numbers, before: Numbers, name: str) -> float:
    return after.buckets[name][math.inf] - before.buckets[name][math.inf]


def percentile(after: Numbers, before: Numbers, name: str, share: float = 0.99) -> Percentiles:
    """Between two looks, linear within a bucket; in the last one, its lower bound."""
    total = _count(after, before, name)
    low_s, low = 0.0, 0.0
    for bound_s in sorted(after.buckets[name]):
        count = after.buckets[name][bound_s] - before.buckets[name][bound_s]
        if total > 0 and count >= share * total:
            if math.isinf(bound_s) or count == low:
                return Percentiles(low_s, total)
            return Percentiles(low_s + (bound_s - low_s) * (share * total - low) / (count - low), total)
        low_s, low = bound_s, count
    return Percentiles(0.0, max(0.0, total))
