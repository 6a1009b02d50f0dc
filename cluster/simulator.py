"""What would a fleet do with these requests? Events over replicas and ingresses, with the policies of production.

`simulate(workload, fleet, policies)` gives a `Report`; a `Simulation` goes on from run to run with its caches warm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Literal

from cluster.policy import ScalerMemory
from cluster.report import Report, Tally, make_report
from cluster.sim_fleet import Failure, SimFleet
from cluster.sim_ingress import Ingress, Member, Policies
from cluster.sim_job import Job
from cluster.sim_kv import KvCache
from cluster.sim_replica import Replica
from cluster.sim_run import GapCounts
from cluster.sim_scaling import Demand, fleet_picture
from cluster.workload import Request, Workload
from llama31.errors import ConfigInvalid

# An autoscaler that starts nothing for those who wait is not asked for ever.
_VAIN_TICKS = 10_000
_Event = Literal["wake", "report", "fail", "notice", "ready", "tick"]


def simulate(workload: Workload, fleet: SimFleet, policies: Policies, seed: int = 0) -> Report:
    """One run from an idle fleet with empty caches to the last token. Equal arguments give equal reports.

    Raises: ConfigInvalid if the workload's blocks do not consist of whole blocks of the engine.
    """
    return Simulation(fleet, policies, workload.block_tokens, seed).run(workload)


class Simulation:
    """A fleet that takes one workload after the other."""

    def __init__(self, fleet: SimFleet, policies: Policies, block_tokens: int, seed: int = 0) -> None:
        if block_tokens % fleet.engine.block_tokens:
            raise ConfigInvalid(
                f"blocks of {block_tokens} tokens are not whole blocks of the engine's {fleet.engine.block_tokens}"
            )
        self._fleet = fleet
        self._block_tokens = block_tokens
        self._has_index = policies.index is not None
        speed = fleet.cost.speed()
        view = fleet.view
        self._ingresses = [Ingress(n, policies, speed, view, seed) for n in range(view.ingresses)]
        self._members: dict[Replica, Member] = {}
        self._gone: list[Replica] = []
        self._starting: dict[Replica, float] = {}
        self._drained_gpu_s = 0.0
        self._born_s: dict[Replica, float] = {}
        self._count = 0
        self._orders = 0
        self._pending = 0
        self._now_s = 0.0
        self._events: list[tuple[float, int, _Event, object, int]] = []
        self._event_count = 0
        self._gaps = GapCounts()
        self._tally = Tally()
        self._demand = Demand()
        self._memory = ScalerMemory(target=fleet.replicas)
        self._is_ticking = False
        self._vain_ticks = 0
        for _ in range(fleet.replicas):
            self._enter(self._new_replica())
        for failure in fleet.failures:
            self._push(failure.at_s, "fail", failure)

    @property
    def now_s(self) -> float:
        """Seconds since the first run began."""
        return self._now_s

    def rest(self, seconds: float) -> None:
        """The next run begins that much later."""
        self._now_s += seconds

    def run(self, workload: Workload) -> Report:
        """All of these requests; their arrivals count from now. The next run may go on from here."""
        begin_s = self._now_s
        self._reset(begin_s)
        last_s = begin_s
        arrivals = iter(workload.requests)
        request = next(arrivals, None)
        if self._fleet.scaling is not None and not self._is_ticking:
            self._is_ticking = True
            self._push(begin_s + self._fleet.scaling.tick_s, "tick", None)
        events = self._events
        while request is not None or self._pending:
            arrival_s = begin_s + request.arrival_s if request is not None else math.inf
            if events and events[0][0] < arrival_s:
                event_s, _, event, subject, version = heappop(events)
                self._now_s = max(self._now_s, event_s)
                self._tally.events += 1
                if self._happens(event, subject, version):
                    last_s = self._now_s
                    self._vain_ticks = 0
            elif request is not None:
                self._now_s = max(self._now_s, arrival_s)
                self._arrive(request)
                request = _next_in_order(arrivals, request)
            else:
                self._give_up()
        return self._report(begin_s, last_s)

    def _reset(self, begin_s: float) -> None:
        self._tally = Tally()
        self._gaps = GapCounts()
        self._gone.clear()
        self._drained_gpu_s = 0.0
        for replica in [*self._members, *self._starting]:
            replica.restart_counts(self._gaps)
            self._born_s[replica] = begin_s

    def _report(self, begin_s: float, last_s: float) -> Report:
        everyone = [*self._members, *self._starting, *self._gone]
        alive_s = sum(last_s - self._born_s[replica] for replica in [*self._members, *self._starting])
        return make_report(
            self._tally,
            last_s - begin_s,
            self._gaps,
            preemptions=sum(replica.preemptions for replica in everyone),
            load={replica.replica_id: replica.work_tokens for replica in everyone},
            gpu_hours=max(0.0, alive_s + self._drained_gpu_s) * self._fleet.gpus_per_replica / 3600,
        )

    def _happens(self, event: _Event, subject: object, version: int) -> bool:
        """One event; whether requests ended with it."""
        match subject:
            case Replica() if event == "wake":
                return subject.version == version and self._wake(subject)
            case Replica() if event == "report":
                self._take_report(subject)
            case Replica() if subject in self._starting:
                self._enter(subject)
            case Failure():
                self._fail(subject)
            case Member():
                self._notice(subject)
            case None:
                self._tick()
        return False

    def _push(self, time_s: float, event: _Event, subject: object, version: int = 0) -> None:
        self._event_count += 1
        heappush(self._events, (time_s, self._event_count, event, subject, version))

    # Requests

    def _arrive(self, request: Request) -> None:
        self._vain_ticks = 0
        self._orders += 1
        self._pending += 1
        self._demand.arrived(request)
        ingress = self._ingresses[self._orders % len(self._ingresses)]
        job = Job(request, self._orders, ingress.number, self._now_s)
        if ingress.enqueue(job):
            self._admit(ingress)
        else:
            self._dispatch(ingress, job)

    def _admit(self, ingress: Ingress) -> None:
        while True:
            decided = ingress.admit(self._now_s, self._starting_in_s(), len(self._ingresses))
            if decided is None:
                return
            job, why_refused = decided
            if why_refused:
                self._refuse(job, why_refused)
            else:
                self._dispatch(ingress, job)

    def _dispatch(self, ingress: Ingress, job: Job) -> None:
        member = ingress.route(job, self._now_s, self._block_tokens)
        if member is None:
            ingress.held.append(job)
        elif not member.is_reachable:
            member.stranded.append(job)
        elif not member.replica.fits(job):
            ingress.started(job, member.replica.replica_id)
            ingress.finished(job, member.replica.replica_id, self._now_s)
            self._refuse(job, "larger than the KV cache")
        else:
            replica = member.replica
            before = replica.version
            replica.submit(job, self._now_s)
            self._follow(replica, before)

    def _refuse(self, job: Job, reason: str) -> None:
        self._pending -= 1
        self._tally.refused[reason] += 1

    def _give_up(self) -> None:
        """Nothing will ever happen again, but somebody waits: there is no replica, and none is coming."""
        for ingress in self._ingresses:
            for job in ingress.give_up():
                self._refuse(job, "no replica")

    # Replicas

    def _follow(self, replica: Replica, before: int) -> None:
        """Notes when it wants to be woken, and that it will report."""
        if replica.version != before and replica.end_s < math.inf:
            self._push(replica.end_s, "wake", replica, replica.version)
        heartbeat_s = self._fleet.view.heartbeat_s
        if heartbeat_s and not replica.is_reporting:
            replica.is_reporting = True
            beats = math.floor((self._now_s - replica.phase_s) / heartbeat_s) + 1
            replica.beats = max(replica.beats + 1, beats)
            self._push(replica.phase_s + replica.beats * heartbeat_s, "report", replica)

    def _wake(self, replica: Replica) -> bool:
        before = replica.version
        replica.wake(self._now_s)
        self._follow(replica, before)
        return self._settle(replica)

    def _settle(self, replica: Replica) -> bool:
        """First and last tokens reach their ingresses; whether there were last ones."""
        if self._has_index and not self._fleet.view.heartbeat_s:
            self._tell_blocks(replica)
        for job in replica.started:
            self._ingresses[job.ingress].started(job, replica.replica_id)
        replica.started.clear()
        if not replica.finished:
            return False
        finished, replica.finished = replica.finished, []
        for job in finished:
            self._pending -= 1
            self._book(job)
            self._ingresses[job.ingress].finished(job, replica.replica_id, self._now_s)
        self._resume({job.ingress for job in finished})
        member = self._members.get(replica)
        if member is not None and member.is_draining and member.is_reachable and replica.is_idle:
            self._leave(replica)
        return True

    def _book(self, job: Job) -> None:
        tally, request = self._tally, job.request
        tally.arrival_s.append(job.arrival_s)
        tally.ttft_s.append(job.first_token_s - job.arrival_s)
        tally.e2e_s.append(job.last_token_s - job.arrival_s)
        tally.output_tokens.append(request.output_tokens)
        tally.tenants.append(request.tenant)
        tally.prompt_tokens += request.prompt_tokens
        tally.cached_tokens += job.cached_tokens

    def _resume(self, numbers: set[int]) -> None:
        """Something became free: who waits at these ingresses is looked at again."""
        for number in sorted(numbers):
            ingress = self._ingresses[number]
            for _ in range(len(ingress.held)):
                self._dispatch(ingress, ingress.held.popleft())
            self._admit(ingress)

    def _take_report(self, replica: Replica) -> None:
        replica.is_reporting = False
        member = self._members.get(replica)
        if member is None or not member.is_reachable:
            return
        member.report(self._now_s)
        if self._has_index:
            self._tell_blocks(replica)
        for ingress in self._ingresses:
            ingress.dirty.add(replica.replica_id)
            if ingress.index is not None:
                ingress.index.reported(replica.replica_id)
        if not replica.is_idle:
            self._follow(replica, replica.version)

    def _tell_blocks(self, replica: Replica) -> None:
        changed, replica.kv.changed = replica.kv.changed, {}
        if not changed:
            return
        stored = [block for block, is_here in changed.items() if is_here]
        dropped = [block for block, is_here in changed.items() if not is_here]
        for ingress in self._ingresses:
            if ingress.index is not None:
                ingress.index.drop(replica.replica_id, dropped)
                ingress.index.store(replica.replica_id, stored)

    # The fleet

    def _new_replica(self) -> Replica:
        fleet = self._fleet
        kv = KvCache(fleet.cost.kv_tokens, fleet.engine.block_tokens, self._block_tokens, self._has_index)
        replica = Replica(f"replica-{self._count:04d}", fleet.cost, fleet.engine, kv, self._gaps)
        # Spread over a heartbeat, so that they do not all report at once.
        replica.phase_s = fleet.view.heartbeat_s * (self._count * 0.618 % 1.0)
        self._count += 1
        self._born_s[replica] = self._now_s
        return replica

    def _start(self) -> None:
        replica = self._new_replica()
        self._starting[replica] = self._now_s + self._fleet.start_s
        self._push(self._starting[replica], "ready", replica)

    def _enter(self, replica: Replica) -> None:
        self._starting.pop(replica, None)
        member = Member(replica)
        member.report(self._now_s)
        self._members[replica] = member
        self._meet()
        self._resume(set(range(len(self._ingresses))))

    def _leave(self, replica: Replica) -> None:
        self._members.pop(replica, None)
        self._starting.pop(replica, None)
        self._gone.append(replica)
        self._drained_gpu_s += self._now_s - self._born_s.pop(replica)
        self._meet()

    def _meet(self) -> None:
        members = list(self._members.values())
        for ingress in self._ingresses:
            ingress.meet(members)

    def _fail(self, failure: Failure) -> None:
        alive = [member for member in self._members.values() if member.is_reachable]
        if not alive:
            return
        member = alive[failure.place % len(alive)]
        member.is_reachable = False
        member.stranded = member.replica.lose_all(self._now_s)
        self._settle(member.replica)
        self._push(self._now_s + failure.notice_s, "notice", member)
        self._start()

    def _notice(self, member: Member) -> None:
        replica_id = member.replica.replica_id
        self._leave(member.replica)
        for job in member.stranded:
            self._tally.retries += 1
            ingress = self._ingresses[job.ingress]
            ingress.started(job, replica_id)
            self._dispatch(ingress, job)
        member.stranded = []

    def _starting_in_s(self) -> float:
        return min(self._starting.values(), default=math.inf) - self._now_s

    # The autoscaler

    def _tick(self) -> None:
        scaling = self._fleet.scaling
        if scaling is None:
            return
        ticks = self._demand.tick(scaling.tick_s, scaling.history_ticks)
        picture = fleet_picture(
            self._now_s, list(self._members.values()), self._starting, self._ingresses, self._fleet, ticks
        )
        scale, self._memory = scaling.policy.decide(picture, self._memory)
        self._tally.scales.append((self._now_s, scale))
        serving = [member for member in self._members.values() if member.is_reachable and not member.is_draining]
        change = min(scale.target, scaling.max_replicas) - len(serving) - len(self._starting)
        for _ in range(max(0, change)):
            self._start()
        for _ in range(max(0, -change)):
            self._remove_one()
        self._vain_ticks += 1
        self._is_ticking = self._vain_ticks < _VAIN_TICKS
        if self._is_ticking:
            self._push(self._now_s + scaling.tick_s, "tick", None)

    def _remove_one(self) -> None:
        """The youngest that is not ready yet, or else the one with the least to finish."""
        if self._starting:
            self._leave(next(reversed(self._starting)))
            return
        serving = [member for member in self._members.values() if member.is_reachable and not member.is_draining]
        member = min(serving, key=lambda m: (m.replica.jobs, m.replica.replica_id))
        member.is_draining = True
        if member.replica.is_idle:
            self._leave(member.replica)
        else:
            self._meet()


def _next_in_order(arrivals: Iterator[Request], before: Request) -> Request | None:
    request = next(arrivals, None)
    if request is not None and request.arrival_s < before.arrival_s:
        raise ConfigInvalid("the requests of a workload come in the order of their arrivals")
    return request
