"""How much more may this ingress put into the engines? Its share of the fleet's room, less what it has inside."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.policy import AdmissionSnapshot, QueuedRequest, ReplicaSnapshot, StepSpeed, TenantQueue
from deployments.call import ModelState

# So many steps of prompts may be on their way to their first tokens: while one is computed, half of the next waits.
PREFILL_STEPS_AHEAD = 1.5
# Tenants that were not given less than the others have so many, and not all of the room, while there are others: steps
# stay short, and whoever comes finds a place and does not stand behind a whole step of a flood's (`bench/fairness.py`).
LATER_STEPS_AHEAD = 0.5
LATER_ROOM = 0.9
# Reports come every 0.5 s; in between only this ingress's own requests change the picture.
FLEET_EVERY_S = 0.05
# Over which time room that was given out is counted, and how long the count must be to say anything. A burst fills
# the free room at once, so a short count says too much: then a request too many waits, but none is refused for nothing.
ENTERED_WINDOW_S = 10.0
ENTERED_SPEAKS_S = 1.0
# Of a replica whose first report has not come: it will within half a second.
UNREPORTED_KV_TOKENS = 1 << 20


class Replicas(Protocol):
    """What is asked of the fleet: `deployments.fleet.Fleet`."""

    version: int

    def snapshots(self) -> Sequence[ReplicaSnapshot]:
        """Every linked replica."""

    def state(self) -> ModelState:
        """How far the model is."""


@dataclass(frozen=True, slots=True)
class EngineBounds:
    """What one replica takes: sequences in its steps, prompt tokens in one step."""

    max_running: int
    max_step_tokens: int


@dataclass(frozen=True, slots=True)
class _FleetRoom:
    """All ready replicas together."""

    ready: int = 0
    kv_tokens: int = 0
    kv_tokens_replica: int = 0
    prefill_tokens: int = 0
    running: float = 0.0
    context_tokens: float = 0.0
    speed: StepSpeed | None = None


class Room:
    """Counts what this ingress has inside, in the words of the admission policy."""

    def __init__(
        self, fleet: Replicas, bounds: EngineBounds, share: Callable[[], float], starts_on_demand: bool = False
    ) -> None:
        """`share` is what this ingress holds of the fleet's room; it may change at any time."""
        self._fleet = fleet
        self._bounds = bounds
        self._share = share
        self._starts_on_demand = starts_on_demand
        self._seen = _FleetRoom()
        self._seen_version = -1
        self._seen_s = 0.0
        self._entered: deque[tuple[float, int]] = deque()
        self._busy_since_s: float | None = None
        self.kv_tokens = 0
        self._sequences = 0
        self._prefill_tokens = 0

    def picture(
        self,
        tenants: tuple[TenantQueue, ...],
        passed_tokens: tuple[float, ...],
        level_tokens: float = 0.0,
        is_shared: bool = False,
    ) -> AdmissionSnapshot:
        """For the policy; `is_shared`: several tenants asked lately."""
        fleet, share, bounds = self._look(), self._share(), self._bounds
        slots = int(share * fleet.ready * bounds.max_running)
        return AdmissionSnapshot(
            ready_replicas=fleet.ready,
            kv_tokens_free=int(share * fleet.kv_tokens) - self.kv_tokens,
            kv_tokens_total=int(share * fleet.kv_tokens),
            prefill_tokens=max(fleet.prefill_tokens, self._prefill_tokens // max(1, fleet.ready)),
            speed=fleet.speed,
            starting_in_s=0.0 if fleet.ready or self._is_coming() else math.inf,
            tenants=tenants,
            sequences_free=slots - self._sequences,
            prefill_tokens_free=share * fleet.ready * self._prefill_most() - self._prefill_tokens,
            level_tokens=level_tokens if is_shared else math.inf,
            kv_tokens_later=LATER_ROOM * share * fleet.kv_tokens - self.kv_tokens,
            sequences_later=LATER_ROOM * slots - self._sequences,
            prefill_tokens_later=share * fleet.ready * LATER_STEPS_AHEAD * bounds.max_step_tokens
            - self._prefill_tokens,
            kv_tokens_replica=fleet.kv_tokens_replica,
            replica_running=fleet.running,
            replica_context_tokens=fleet.context_tokens,
            entered_tokens_per_s=self._entered_tokens_per_s(),
            passed_tokens=passed_tokens,
        )

    @property
    def has_replica(self) -> bool:
        """Whether one is ready."""
        return self._look().ready > 0

    @property
    def kv_tokens_total(self) -> int:
        """This ingress's share of all caches."""
        return int(self._share() * self._look().kv_tokens)

    @property
    def kv_tokens_replica(self) -> int:
        """The largest replica's whole cache."""
        return self._look().kv_tokens_replica

    @property
    def state(self) -> ModelState:
        """How far the model is."""
        return self._fleet.state()

    def demand(self, waiting_tokens: int) -> tuple[float, float]:
        """Shares of the fleet's room: what is in use, and what would be with those that wait."""
        fleet = self._look()
        if not fleet.kv_tokens:
            return 0.0, 0.0
        kv = fleet.kv_tokens
        used = max(self.kv_tokens / kv, self._sequences / (fleet.ready * self._bounds.max_running))
        return min(1.0, used), min(1.0, used + waiting_tokens / kv)

    def take(self, request: QueuedRequest) -> Place:
        """A request enters."""
        place = Place(self, request, min(request.sequences * request.prompt_tokens, self._prefill_most()))
        self.kv_tokens += request.kv_tokens
        self._sequences += request.sequences
        self._prefill_tokens += place.prefill_tokens
        if self._busy_since_s is not None:
            self._entered.append((_now_s(), request.kv_tokens))
        return place

    def began(self, place: Place) -> None:
        """Its first token came: the prompts are computed."""
        self._prefill_tokens -= place.prefill_tokens

    def leave(self, place: Place) -> None:
        """It ended."""
        request = place.request
        self.kv_tokens -= request.kv_tokens
        self._sequences -= request.sequences

    def has_queue(self, waiting: bool) -> None:
        """Those that enter say how fast the queue moves only while there is one."""
        if not waiting:
            self._busy_since_s = None
            self._entered.clear()
        elif self._busy_since_s is None:
            self._busy_since_s = _now_s()

    def _entered_tokens_per_s(self) -> float:
        if self._busy_since_s is None or not self._entered:
            return 0.0
        now_s = _now_s()
        while self._entered and self._entered[0][0] < now_s - ENTERED_WINDOW_S:
            self._entered.popleft()
        counted_s = min(ENTERED_WINDOW_S, now_s - self._busy_since_s)
        return sum(tokens for _, tokens in self._entered) / counted_s if counted_s >= ENTERED_SPEAKS_S else 0.0

    def _prefill_most(self) -> int:
        return int(PREFILL_STEPS_AHEAD * self._bounds.max_step_tokens)

    def _is_coming(self) -> bool:
        return self._starts_on_demand or self._fleet.state() != "unavailable"

    def _look(self) -> _FleetRoom:
        now_s = _now_s()
        if self._seen_version != self._fleet.version or now_s - self._seen_s > FLEET_EVERY_S:
            self._seen = _summed([s for s in self._fleet.snapshots() if s.ready and not s.draining])
            self._seen_version, self._seen_s = self._fleet.version, now_s
        return self._seen


class Place:
    """One request's place inside, from `Room.take` to `leave`."""

    __slots__ = ("_has_begun", "_is_over", "_room", "prefill_tokens", "request")

    def __init__(self, room: Room, request: QueuedRequest, prefill_tokens: int) -> None:
        self.request = request
        self.prefill_tokens = prefill_tokens
        self._room = room
        self._has_begun = False
        self._is_over = False

    def begin(self) -> bool:
        """Its first token came; whether that is news."""
        if self._has_begun:
            return False
        self._has_begun = True
        self._room.began(self)
        return True

    def leave(self) -> bool:
        """Gives everything back; whether that is news."""
        if self._is_over:
            return False
        self._is_over = True
        self.begin()
        self._room.leave(self)
        return True


def _summed(ready: Sequence[ReplicaSnapshot]) -> _FleetRoom:
    if not ready:
        return _FleetRoom()
    # One that has not reported yet holds what the largest other one does, or whatever comes.
    largest = max(replica.kv_tokens_total for replica in ready)
    kv_tokens = [replica.kv_tokens_total or largest or UNREPORTED_KV_TOKENS for replica in ready]
    count = len(ready)
    return _FleetRoom(
        ready=count,
        kv_tokens=sum(kv_tokens),
        kv_tokens_replica=largest,
        prefill_tokens=min(max(r.prefill_tokens, r.waiting_prompt_tokens) for r in ready),
        running=sum(replica.running for replica in ready) / count,
        context_tokens=sum(replica.kv_tokens_used for replica in ready) / count,
        speed=next((replica.speed for replica in ready if replica.speed is not None), None),
    )


def _now_s() -> float:
    return asyncio.get_running_loop().time()
