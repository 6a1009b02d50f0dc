"""Which replicas and ingresses exist, how far are they, and where do they listen?

A small named Ray actor, off the token path. Both announce themselves every few seconds, and
ingresses wait for changes of replicas. If it dies, Ray restarts it and the next announcements fill it again;
meanwhile every ingress goes on with what it knows. It also keeps the secret of the links between
ingresses and replicas: whoever makes the directory chooses it, so that a new version of either finds the same one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from ray.actor import ActorHandle
from ray.exceptions import RayError

from cluster.left_groups import GroupSweeper
from deployments.config import cluster_token
from deployments.demand import DemandReport
from deployments.named_actor import find_actor, open_actor
from llama31.engine import RankReport

log = logging.getLogger("llama31.directory")

NAME = "replica-directory"
# What Serve calls the service and its engine replicas.
SERVE_APPLICATION, SERVE_ENGINE = "llama31", "engine"
ANNOUNCE_EVERY_S = 2.0
EXPIRE_AFTER_S = 6.0
POLL_S = 30.0
ANSWER_S = 5.0
SWEEP_EVERY_S = 15.0
SCALINGS_KEPT = 100

Phase = Literal["starting", "loading", "warming up", "ready", "draining", "failed"]


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """Two ways to one worker: `unix_path` on the machine with `boot_id`, `target` from elsewhere."""

    unix_path: str
    boot_id: str
    target: str


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """What a replica announces. `detail` is for people; `address` is set once the worker listens.

    Replicas of equal `digest` compute the same function: a sequence may go on from one to the other.
    """

    replica_id: str
    incarnation: int
    model: str
    plan: str
    phase: Phase
    detail: str = ""
    pid: int = 0
    address: WorkerAddress | None = None
    digest: int = 0
    ranks: tuple[RankReport, ...] = ()


@dataclass(frozen=True, slots=True)
class IngressRecord:
    """What an ingress process announces, for people and `llama31 status`. `http_port` is None without that door."""

    ingress_id: str
    node_ip: str
    pid: int
    host: str
    grpc_port: int
    http_port: int | None
    metrics: str
    phase: Literal["ready", "draining"] = "ready"


@dataclass(frozen=True, slots=True)
class Scaling:
    """What the autoscaler decided once: its target, what it wanted before any bound, and from what."""

    model: str
    target: int
    wanted: int
    reason: str
    load: float
    backlog_s: float


class Directory:
    """The actor's state: the latest record of all that announced themselves lately."""

    def __init__(self, token: str = "", sweep: Callable[[], int] | None = None) -> None:
        """`sweep` blocks; it is called from time to time, in a thread, once somebody has announced itself."""
        self._token = token
        self._sweep = sweep
        self._sweeping: asyncio.Task[None] | None = None
        self._records: dict[str, tuple[float, ReplicaRecord]] = {}
        self._ingresses: dict[str, tuple[float, IngressRecord]] = {}
        self._losses: list[tuple[str, RankReport]] = []
        self._demand: dict[str, tuple[float, DemandReport]] = {}
        self._scalings: deque[Scaling] = deque(maxlen=SCALINGS_KEPT)
        self._version = 0
        self._changed = asyncio.Event()

    async def token(self) -> str:
        """The secret of the links; Ray keeps it for a restarted directory."""
        return self._token

    async def announce(self, record: ReplicaRecord) -> None:
        """Takes a record; only a change wakes those who wait."""
        if self._sweep is not None and self._sweeping is None:
            self._sweeping = asyncio.create_task(self._keep_sweeping(self._sweep))
        known = self._records.get(record.replica_id)
        self._records[record.replica_id] = (_now_s(), record)
        if known is None or known[1] != record:
            self._bump()

    async def withdraw(self, replica_id: str) -> None:
        """Forgets a replica that ended."""
        if self._records.pop(replica_id, None) is not None:
            self._bump()

    async def watch(self, seen_version: int) -> tuple[int, tuple[ReplicaRecord, ...]]:
        """The records, as soon as they differ from `seen_version`, or unchanged after `POLL_S`."""
        self._expire()
        if seen_version == self._version:
            changed = self._changed
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await changed.wait()
            self._expire()
        return self._version, tuple(record for _, record in self._records.values())

    async def list(self) -> tuple[ReplicaRecord, ...]:
        """The records now."""
        self._expire()
        return tuple(record for _, record in self._records.values())

    async def announce_ingress(self, record: IngressRecord) -> None:
        """Takes a record; nobody waits for it."""
        self._ingresses[record.ingress_id] = (_now_s(), record)

    async def withdraw_ingress(self, ingress_id: str) -> None:
        """Forgets an ingress that ended."""
        self._ingresses.pop(ingress_id, None)
        if ingress_id in self._demand:
            seen_s, report = self._demand[ingress_id]
            gone = replace(report, in_flight=0, held=0, backlog_s=0.0, is_over=True)
            self._demand[ingress_id] = (seen_s, gone)

    async def ingresses(self) -> tuple[IngressRecord, ...]:
        """The ingresses now."""
        oldest_s = _now_s() - EXPIRE_AFTER_S
        self._ingresses = {key: entry for key, entry in self._ingresses.items() if entry[0] >= oldest_s}
        return tuple(record for _, record in self._ingresses.values())

    async def lose_rank(self, model: str, report: RankReport) -> None:
        """A replica tells which rank it lost, before it ends with it."""
        self._losses.append((model, report))

    async def take_losses(self) -> tuple[tuple[str, RankReport], ...]:
        """The lost ranks that nobody took yet, with their models: whoever takes them counts them."""
        losses, self._losses = tuple(self._losses), []
        return losses

    def close(self) -> None:
        """Ends what it does by itself."""
        if self._sweeping is not None:
            self._sweeping.cancel()

    async def _keep_sweeping(self, sweep: Callable[[], int]) -> None:
        while True:
            try:
                if removed := await asyncio.to_thread(sweep):
                    log.warning("removed %d placement groups that dead replicas had left", removed)
            except Exception as error:  # whatever keeps Ray from answering; the next look finds them
                log.warning("no look for left placement groups: %s", type(error).__name__)
            await asyncio.sleep(SWEEP_EVERY_S)

    async def report_demand(self, ingress_id: str, report: DemandReport) -> None:
        """What an ingress counted, for the autoscaler."""
        self._demand[ingress_id] = (_now_s(), report)

    async def demand(self) -> tuple[tuple[ReplicaRecord, ...], dict[str, DemandReport]]:
        """What the autoscaler looks at: all replicas, and what each ingress that still reports has counted."""
        oldest_s = _now_s() - EXPIRE_AFTER_S
        self._demand = {key: entry for key, entry in self._demand.items() if entry[0] >= oldest_s}
        return await self.list(), {key: report for key, (_, report) in self._demand.items()}

    async def tell_scaling(self, scaling: Scaling) -> None:
        """A decision of the autoscaler, which has no metrics of its own."""
        self._scalings.append(scaling)

    async def take_scalings(self) -> tuple[Scaling, ...]:
        """The decisions that nobody took yet: whoever takes them counts them."""
        scalings = tuple(self._scalings)
        self._scalings.clear()
        return scalings

    def _expire(self) -> None:
        oldest_s = _now_s() - EXPIRE_AFTER_S
        expired = [key for key, (seen_s, _) in self._records.items() if seen_s < oldest_s]
        for replica_id in expired:
            del self._records[replica_id]
        if expired:
            self._bump()

    def _bump(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()


def open_directory() -> ActorHandle[Any]:
    """The cluster's directory, made by whoever comes first."""
    return open_actor(NAME, Directory, cluster_token() or secrets.token_hex(32), left_group_sweeper().look)


def left_group_sweeper() -> GroupSweeper:
    """Removes the placement groups that dead engine replicas of this service have left."""
    return GroupSweeper(SERVE_APPLICATION, SERVE_ENGINE)


async def told(answer: Awaitable[None]) -> bool:
    """Whether the directory took it in time: it may be away for minutes, with the cluster's head."""
    with contextlib.suppress(RayError, TimeoutError):
        async with asyncio.timeout(ANSWER_S):
            await answer
            return True
    return False


def find_directory() -> ActorHandle[Any] | None:
    """The cluster's directory if there is one."""
    return find_actor(NAME)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
