"""What does one simulated ingress know and do? It sees late reports, asks the policies and acts on their answers."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cluster.fading_sum import FadingSum
from cluster.policy import (
    NOTHING_CACHED,
    AdmissionPolicy,
    AdmissionSnapshot,
    Admitted,
    QueuedRequest,
    Refused,
    ReplicaSnapshot,
    RequestFeatures,
    RouterPolicy,
    StepSpeed,
    TenantQueue,
)
from cluster.sim_fleet import View
from cluster.sim_job import Job
from cluster.sim_replica import Replica, ReplicaState


class PrefixIndex(Protocol):
    """What an ingress thinks is cached where, by chain hashes of whole blocks: production's index, or another."""

    def match(self, hashes: Sequence[int]) -> Mapping[str, int]:
        """How many of these blocks, from the first on without a gap, each replica has; none: it is not named."""

    def expect(self, replica_id: str, hashes: Sequence[int]) -> int:
        """A prompt was sent there. Returns a ticket to settle."""

    def settle(self, ticket: int) -> None:
        """That request has its first token, or is over."""

    def store(self, replica_id: str, hashes: Sequence[int]) -> None:
        """The replica has these blocks now."""

    def drop(self, replica_id: str, hashes: Iterable[int]) -> None:
        """The replica no longer has these blocks."""

    def reported(self, replica_id: str) -> None:
        """One report of the replica has come, and all that it says was stored or dropped."""

    def forget(self, replica_id: str) -> None:
        """The replica is gone, and its cache with it."""


@dataclass(frozen=True, slots=True)
class Policies:
    """Makes the policies of each ingress; without an admission policy all enter at once.

    `weights` are the tenants' shares for admission; a tenant that is not named has 1.
    """

    router: Callable[[], RouterPolicy]
    index: Callable[[], PrefixIndex] | None = None
    admission: Callable[[], AdmissionPolicy] | None = None
    weights: Mapping[str, float] = field(default_factory=dict)


_UNKNOWN = ReplicaState()


@dataclass(slots=True)
class Member:
    """One replica as all ingresses see it: its latest report. `is_reachable` turns false unnoticed."""

    replica: Replica
    is_draining: bool = False
    is_reachable: bool = True
    reported_s: float = 0.0
    state: ReplicaState = _UNKNOWN
    stranded: list[Job] = field(default_factory=list)

    def report(self, now_s: float) -> None:
        """The replica tells where it stands."""
        self.reported_s = now_s
        self.state = self.replica.state(now_s)


class Ingress:
    """One ingress process: its own view of the replicas, its own policies, its own queue."""

    def __init__(self, number: int, policies: Policies, speed: StepSpeed, view: View, seed: int) -> None:
        self.number = number
        self.dirty: set[str] = set()
        self.held: deque[Job] = deque()
        self._router = policies.router()
        self.index = policies.index() if policies.index is not None else None
        self._admission = policies.admission() if policies.admission is not None else None
        self._weights = policies.weights
        self._speed = speed
        self._candidates = view.candidates
        self._is_live = view.heartbeat_s == 0
        self._dice = random.Random(f"{seed}/{number}")
        self._members: dict[str, Member] = {}
        self._places: dict[str, int] = {}
        self._snapshots: list[ReplicaSnapshot] = []
        self._outstanding: dict[str, int] = {}
        self._sent_prefill: dict[str, int] = {}
        self._recent: defaultdict[str, FadingSum] = defaultdict(FadingSum)
        self._queues: dict[str, dict[int, deque[Job]]] = {}
        self._queued: dict[str, Job] = {}
        self._served: dict[str, float] = {}

    def meet(self, members: Sequence[Member]) -> None:
        """These replicas exist now."""
        gone = self._members.keys() - {member.replica.replica_id for member in members}
        for replica_id in gone:
            self._outstanding.pop(replica_id, None)
            self._sent_prefill.pop(replica_id, None)
            self._recent.pop(replica_id, None)
            if self.index is not None:
                self.index.forget(replica_id)
        self._members = {member.replica.replica_id: member for member in members}
        self._places = {replica_id: place for place, replica_id in enumerate(self._members)}
        self._snapshots = [self._snapshot(member, member.reported_s) for member in members]
        self.dirty.clear()

    def route(self, job: Job, now_s: float, block_tokens: int) -> Member | None:
        """The replica that the policy chose, None if it chose none."""
        request = job.request
        features = RequestFeatures(
            job.prompt_tokens, request.max_output_tokens or request.output_tokens, "", request.block_hashes
        )
        cached = NOTHING_CACHED
        if self.index is not None:
            found = self.index.match(request.block_hashes)
            cached = {replica_id: blocks * block_tokens for replica_id, blocks in found.items()}
        snapshots: Sequence[ReplicaSnapshot] = self._refreshed(now_s)
        if 0 < self._candidates < len(snapshots):
            snapshots = self._dice.sample(snapshots, self._candidates)
        replica_id = self._router.route(features, snapshots, cached).replica_id
        if replica_id is None:
            return None
        if self.index is not None:
            job.ticket = self.index.expect(replica_id, request.block_hashes)
        job.sent_prefill_tokens = max(0, job.prompt_tokens - cached.get(replica_id, 0))
        self._outstanding[replica_id] = self._outstanding.get(replica_id, 0) + _claim(job)
        self._sent_prefill[replica_id] = self._sent_prefill.get(replica_id, 0) + job.sent_prefill_tokens
        self._recent[replica_id].add(job.prompt_tokens, now_s)
        self.dirty.add(replica_id)
        return self._members[replica_id]

    def started(self, job: Job, replica_id: str) -> None:
        """Its first token came: its prompt is computed."""
        if self.index is not None:
            self.index.settle(job.ticket)
        if replica_id in self._sent_prefill:
            self._sent_prefill[replica_id] -= job.sent_prefill_tokens
            self.dirty.add(replica_id)
        job.sent_prefill_tokens = 0

    def finished(self, job: Job, replica_id: str, now_s: float) -> None:
        """Its last token came."""
        if replica_id in self._outstanding:
            self._outstanding[replica_id] -= _claim(job)
            self._recent[replica_id].add(job.request.output_tokens - job.output_left, now_s)
            self.dirty.add(replica_id)

    def enqueue(self, job: Job) -> bool:
        """Takes a job for admission; False if there is no such policy here."""
        if self._admission is None:
            return False
        request = job.request
        if request.tenant not in self._queues:
            # Whoever comes anew starts level with those who wait: idle time is no credit.
            active = [self._served[tenant] for tenant in self._queues]
            self._served[request.tenant] = max(self._served.get(request.tenant, 0.0), min(active, default=0.0))
        self._queues.setdefault(request.tenant, {}).setdefault(request.priority, deque()).append(job)
        self._queued[str(job.order)] = job
        return True

    @property
    def waiting(self) -> int:
        """Requests that no replica has yet."""
        return len(self.held) + len(self._queued)

    def admit(self, now_s: float, starting_in_s: float, ingresses: int) -> tuple[Job, str] | None:
        """Whom the policy lets in next, or refuses: then with the reason. None: all go on waiting."""
        if self._admission is None or not self._queued:
            return None
        decision = self._admission.decide(self._admission_picture(now_s, starting_in_s, ingresses))
        if decision is None:
            return None
        job = self._queued.pop(decision.request_id)
        queues = self._queues[decision.tenant]
        queues[job.request.priority].remove(job)
        if not queues[job.request.priority]:
            del queues[job.request.priority]
        if not queues:
            del self._queues[decision.tenant]
        if isinstance(decision, Admitted):
            self._served[decision.tenant] += decision.charge_tokens
        return job, decision.reason if isinstance(decision, Refused) else ""

    def give_up(self) -> list[Job]:
        """Everybody who still waits here, when nothing will ever happen again."""
        left = [*self.held, *self._queued.values()]
        self.held.clear()
        self._queued.clear()
        self._queues.clear()
        return left

    def _refreshed(self, now_s: float) -> list[ReplicaSnapshot]:
        members = self._members
        if self._is_live:
            for member in members.values():
                if member.is_reachable:
                    member.report(now_s)
            self.dirty.update(members)
        for replica_id in self.dirty:
            if replica_id in members:
                self._snapshots[self._places[replica_id]] = self._snapshot(members[replica_id], now_s)
        self.dirty.clear()
        return self._snapshots

    def _snapshot(self, member: Member, now_s: float) -> ReplicaSnapshot:
        replica, state = member.replica, member.state
        replica_id = replica.replica_id
        return ReplicaSnapshot(
            replica_id,
            True,
            member.is_draining,
            state.running,
            state.waiting,
            state.waiting_prompt_tokens,
            state.kv_tokens_used,
            replica.kv.total_blocks * replica.kv.block_tokens,
            self._outstanding.get(replica_id, 0),
            max(state.prefill_tokens, self._sent_prefill.get(replica_id, 0)),
            0.0 if member.is_reachable else now_s - member.reported_s,
            self._speed,
            self._recent[replica_id].at(now_s),
        )

    def _admission_picture(self, now_s: float, starting_in_s: float, ingresses: int) -> AdmissionSnapshot:
        ready = [s for s in self._refreshed(now_s) if s.ready and not s.draining]
        total = sum(snapshot.kv_tokens_total for snapshot in ready) // ingresses
        return AdmissionSnapshot(
            ready_replicas=len(ready),
            kv_tokens_free=max(0, total - sum(self._outstanding.values())),
            kv_tokens_total=total,
            prefill_tokens=min((snapshot.prefill_tokens for snapshot in ready), default=0),
            speed=self._speed,
            starting_in_s=starting_in_s,
            tenants=tuple(self._tenant_queue(tenant, now_s) for tenant in self._queues),
            kv_tokens_replica=max((snapshot.kv_tokens_total for snapshot in ready), default=0),
            replica_running=sum(snapshot.running for snapshot in ready) / max(1, len(ready)),
            replica_context_tokens=sum(snapshot.kv_tokens_used for snapshot in ready) / max(1, len(ready)),
        )

    def _tenant_queue(self, tenant: str, now_s: float) -> TenantQueue:
        queues = self._queues[tenant]
        return TenantQueue(
            tenant=tenant,
            weight=self._weights.get(tenant, 1.0),
            served_tokens=self._served[tenant],
            heads=tuple(_queued_request(queues[priority][0], now_s) for priority in sorted(queues)),
            waiting=sum(len(queue) for queue in queues.values()),
            tail=_queued_request(queues[max(queues)][-1], now_s),
            waiting_tokens=sum(_claim(job) for queue in queues.values() for job in queue),
        )


def _claim(job: Job) -> int:
    request = job.request
    return request.prompt_tokens + (request.max_output_tokens or request.output_tokens)


def _queued_request(job: Job, now_s: float) -> QueuedRequest:
    request = job.request
    limit = request.max_output_tokens or request.output_tokens
    waited_s = now_s - job.arrival_s
    return QueuedRequest(
        request_id=str(job.order),
        priority=request.priority,
        prompt_tokens=request.prompt_tokens,
        max_output_tokens=limit,
        expected_output_tokens=limit,
        waited_s=waited_s,
        deadline_in_s=request.deadline_s - waited_s,
    )
