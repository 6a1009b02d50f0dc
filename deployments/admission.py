"""When does a request enter? The queue of one ingress: asks the policy whenever something changed, and acts.

While nobody waits and there is room, a request enters in the same turn of the event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import get_args

from cluster.policy import Admitted, QueuedRequest, Refused, TenantQueue
from deployments.choices import Job
from deployments.metrics import Metrics
from deployments.policies.admission import FairAdmission, RefusalReason, charge, predicted_ttft_s, work_tokens
from deployments.policies.fair_shares import AnswerLengths, FairShares
from deployments.policies.late_line import LateLine
from deployments.room import Place, Room
from llama31.chat import Priority
from llama31.errors import ContextTooLong, DeadlineExceeded, Llama31Error, NoReadyReplica, Overloaded

# While somebody waits, time itself is looked at so often: deadlines, and replicas that came.
LOOK_EVERY_S = 0.05
# After the tenant of a request was another than the one before, the service counts as shared for so long.
SHARED_FOR_S = 30.0
# Tenants of whom nothing waits are forgotten when there are more than this.
_MAX_IDLE_TENANTS = 1000


class Admission:
    """The door between those that were let in by their limits and the engines, for one model at one ingress."""

    def __init__(
        self,
        model: str,
        room: Room,
        metrics: Metrics,
        policy: FairAdmission | None = None,
        slo_ttft_s: float = math.inf,
    ) -> None:
        """Whoever cannot have a first token within `slo_ttft_s` waits behind its tenant's others of its priority."""
        self._model = model
        self._slo_ttft_s = slo_ttft_s
        self._room = room
        self._metrics = metrics
        self._policy = policy or FairAdmission()
        self._shares = FairShares()
        self._lengths: dict[str, AnswerLengths] = {}
        self._charges: dict[str, float] = {}
        self._queues: dict[str, _Queue] = {}
        self._by_id: dict[str, _Waiting] = {}
        self._passed: tuple[float, ...] = (0.0,) * len(Priority)
        self._waiting = [0] * len(Priority)
        self._last_tenant: str | None = None
        self._other_asked_s = -math.inf
        self._clock: asyncio.TimerHandle | None = None
        for reason in get_args(RefusalReason):
            # There from the start, so that the first refusal is a rise.
            metrics.child("llama31_admission_refused_total", model=model, reason=reason)
        labels = [{"model": model, "priority": priority.name.lower()} for priority in Priority]
        self._wait_seconds = [metrics.child("llama31_admission_wait_seconds", **label) for label in labels]
        self._waiting_gauges = [metrics.child("llama31_admission_waiting", **label) for label in labels]

    async def enter(self, job: Job) -> Ticket:
        """Waits until the request may go to a replica; `Ticket.leave` must follow.

        Raises: Overloaded, NoReadyReplica, DeadlineExceeded, ContextTooLong.
        """
        waiting = self._line_up(job)
        self._decide()
        if waiting.ticket is None and waiting.error is None:
            await self._wait(waiting)
        if waiting.error is not None:
            raise waiting.error
        assert waiting.ticket is not None
        return waiting.ticket

    def __len__(self) -> int:
        """How many wait."""
        return len(self._by_id)

    def demand(self) -> tuple[float, float]:
        """Shares of the fleet's room: in use, and wanted."""
        return self._room.demand(sum(queue.tokens for queue in self._queues.values()))

    def left(self, ticket: Ticket, output_tokens: int) -> None:
        """A request ended with so many tokens of all its choices."""
        request, tenant = ticket.place.request, ticket.tenant
        forecast = request.sequences * request.expected_output_tokens
        wrong = work_tokens(0, output_tokens - forecast)
        self._shares.correct(tenant, wrong, ticket.weight)
        self._note(tenant, wrong / ticket.weight)
        if output_tokens:
            lengths = self._lengths.get(tenant, AnswerLengths())
            self._lengths[tenant] = lengths.with_answer(output_tokens / request.sequences)
        self._decide()

    def take_charges(self) -> dict[str, float]:
        """Weighted work given to each tenant since the last call."""
        charges, self._charges = self._charges, {}
        return charges

    def add_others(self, charges: Mapping[str, float]) -> None:
        """Weighted work that other ingresses gave to tenants."""
        self._shares.add_others(charges)

    def look_again(self) -> None:
        """Room may have come: an engine began to answer, or this ingress was given more."""
        if self._by_id:
            self._decide()

    def _line_up(self, job: Job) -> _Waiting:
        tenant = job.call.tenant
        lengths = self._lengths.get(tenant.name, AnswerLengths())
        if self._last_tenant not in (None, tenant.name):
            self._other_asked_s = _now_s()
        self._last_tenant = tenant.name
        waiting = _Waiting(job, lengths.forecast(job.request.limits.max_output_tokens), _now_s())
        queue = self._queues.get(tenant.name)
        if queue is None:
            self._forget_idle()
            # One filling of the room: as much as one that always waits may have inside.
            self._shares.arrive(tenant.name, self._queues, self._room.kv_tokens_total / tenant.weight)
            queue = self._queues[tenant.name] = _Queue(tenant.name, tenant.weight, self._slo_ttft_s)
        queue.add(waiting)
        self._by_id[waiting.request_id] = waiting
        self._count(waiting.priority, 1)
        return waiting

    async def _wait(self, waiting: _Waiting) -> None:
        waiting.decided = asyncio.get_running_loop().create_future()
        if self._clock is None:
            self._tick()
        try:
            async with asyncio.timeout_at(waiting.deadline_s):
                await waiting.decided
        except TimeoutError:
            self._give_up(waiting)
            raise DeadlineExceeded("the queue") from None
        except asyncio.CancelledError:
            self._give_up(waiting)
            raise

    def _give_up(self, waiting: _Waiting) -> None:
        """Nobody waits for it any more: also where it was decided in the same moment."""
        if waiting.ticket is not None:
            waiting.ticket.leave(0)
        elif waiting.request_id in self._by_id:
            self._remove(waiting)
            self._decide()

    def _decide(self) -> None:
        """Asks the policy until all that are left go on waiting."""
        while self._by_id:
            now_s = _now_s()
            tenants = self._lines(now_s)
            picture = self._room.picture(tenants, self._passed, self._shares.level, self._is_shared(now_s))
            decision = self._policy.decide(picture)
            if decision is None:
                break
            waiting = self._by_id[decision.request_id]
            self._remove(waiting)
            if isinstance(decision, Refused):
                self._metrics.add("llama31_admission_refused_total", model=self._model, reason=decision.reason)
                waiting.error = self._error(waiting, decision)
            else:
                self._let_in(waiting, decision, now_s)
            if waiting.decided is not None and not waiting.decided.done():
                waiting.decided.set_result(None)
        self._room.has_queue(waiting=bool(self._by_id))

    def _let_in(self, waiting: _Waiting, decision: Admitted, now_s: float) -> None:
        weight = waiting.weight
        self._shares.enter(decision.tenant, decision.charge_tokens, weight)
        self._note(decision.tenant, decision.charge_tokens / weight)
        still = {level for level, count in enumerate(self._waiting) if count}
        self._passed = self._policy.passed_after(self._passed, waiting.priority, decision.charge_tokens, still)
        self._wait_seconds[waiting.priority].observe(now_s - waiting.arrived_s)
        if queue := self._queues.get(decision.tenant):
            queue.entered(waiting, decision.charge_tokens)
        place = self._room.take(waiting.request(now_s))
        waiting.ticket = Ticket(self, place, decision.tenant, weight)

    def _remove(self, waiting: _Waiting) -> None:
        del self._by_id[waiting.request_id]
        self._count(waiting.priority, -1)
        queue = self._queues[waiting.tenant]
        queue.remove(waiting)
        if not queue.waiting:
            del self._queues[waiting.tenant]

    def _error(self, waiting: _Waiting, refused: Refused) -> Llama31Error:
        retry_s = refused.retry_after_s
        again = f"try again in {retry_s:.0f} s"
        match refused.reason:
            case "too_large":
                most = self._room.kv_tokens_replica
                return ContextTooLong(waiting.prompt_tokens, 1, most)
            case "no_replica":
                return NoReadyReplica(self._model, self._room.state)
            case "deadline_unmeetable" if math.isinf(retry_s):
                return DeadlineExceeded("admission: it is too short for this request on an idle replica, too")
            case "deadline_unmeetable":
                return Overloaded(f"overloaded: the deadline cannot be met now; {again}", retry_s)
        return Overloaded(f"overloaded: this request would wait too long; {again}", retry_s)

    def _lines(self, now_s: float) -> tuple[TenantQueue, ...]:
        """As the policy sees them. While nobody can enter, the oldest stands for all: it has held out longest."""
        is_open = self._room.has_replica
        if is_open and len(self._by_id) > 1 and not math.isinf(self._slo_ttft_s):
            self._sort(now_s)
        counter = self._shares.counter
        return tuple(queue.picture(counter(queue.tenant), now_s, is_open) for queue in self._queues.values())

    def _sort(self, now_s: float) -> None:
        """Sets aside who cannot be on time any more; half the SLO is for what comes if no replica tells its speed."""
        seen = self._room.picture((), self._passed)

        def first_token_s(prompt_tokens: int) -> float:
            return predicted_ttft_s(seen, seen.speed, prompt_tokens) if seen.speed else self._slo_ttft_s / 2

        for queue in self._queues.values():
            queue.sort(now_s, first_token_s)

    def _is_shared(self, now_s: float) -> bool:
        """Whether others than the last tenant asked lately."""
        return now_s - self._other_asked_s < SHARED_FOR_S

    def _note(self, tenant: str, charge: float) -> None:
        self._charges[tenant] = self._charges.get(tenant, 0.0) + charge

    def _count(self, priority: int, more: int) -> None:
        self._waiting[priority] += more
        self._waiting_gauges[priority].set(self._waiting[priority])

    def _tick(self) -> None:
        self._clock = None
        if self._by_id:
            self._clock = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._tick)
            self._decide()

    def _forget_idle(self) -> None:
        if len(self._lengths) > _MAX_IDLE_TENANTS:
            self._lengths = {name: kept for name, kept in self._lengths.items() if name in self._queues}
            self._shares.forget_idle(self._queues)


class Ticket:
    """One request inside."""

    __slots__ = ("_admission", "_is_over", "_open_sequences", "place", "tenant", "weight")

    def __init__(self, admission: Admission, place: Place, tenant: str, weight: float) -> None:
        self._admission = admission
        self.place = place
        self.tenant = tenant
        self.weight = weight
        self._open_sequences = place.request.sequences
        self._is_over = False

    def progress(self, is_end: bool) -> None:
        """A replica sent the first output of a sequence, or its last: the room is free, whoever still reads."""
        self._open_sequences -= is_end
        if self.place.begin() | (self._open_sequences == 0 and self.place.leave()):
            self._admission.look_again()

    def leave(self, output_tokens: int) -> None:
        """It is over, with so many tokens of all its choices; idempotent."""
        if not self._is_over:
            self._is_over = True
            self.place.leave()
            self._admission.left(self, output_tokens)


class _Waiting:
    """One request in the queue."""

    __slots__ = (
        "_expected_tokens",
        "_max_tokens",
        "_sequences",
        "arrived_s",
        "deadline_s",
        "decided",
        "error",
        "is_gone",
        "is_late",
        "priority",
        "prompt_tokens",
        "request_id",
        "tenant",
        "ticket",
        "tokens",
        "weight",
    )

    def __init__(self, job: Job, expected_tokens: int, now_s: float) -> None:
        self.request_id = job.request.request_id
        self.tenant = job.call.tenant.name
        self.weight = job.call.tenant.weight
        self.priority = job.request.priority
        self.prompt_tokens = len(job.request.prompt_token_ids)
        self.arrived_s = now_s
        self.deadline_s = job.call.deadline_s
        self.ticket: Ticket | None = None
        self.error: Llama31Error | None = None
        self.decided: asyncio.Future[None] | None = None
        self.is_gone = False
        self.is_late = False
        self._expected_tokens = expected_tokens
        self._max_tokens = job.request.limits.max_output_tokens
        self._sequences = job.options.num_choices
        self.tokens = self.request(now_s).kv_tokens

    def request(self, now_s: float) -> QueuedRequest:
        """As the policy sees it now."""
        return QueuedRequest(
            request_id=self.request_id,
            priority=self.priority,
            prompt_tokens=self.prompt_tokens,
            max_output_tokens=self._max_tokens,
            expected_output_tokens=self._expected_tokens,
            waited_s=now_s - self.arrived_s,
            deadline_in_s=math.inf if self.deadline_s is None else self.deadline_s - now_s,
            sequences=self._sequences,
        )


class _Queue:
    """What waits of one tenant, one line for each priority."""

    def __init__(self, tenant: str, weight: float, slo_ttft_s: float) -> None:
        self.tenant = tenant
        self.weight = weight
        self.waiting = 0
        self.tokens = 0
        self._slo_ttft_s = slo_ttft_s
        self._levels: dict[int, LateLine[_Waiting]] = {}

    def add(self, waiting: _Waiting) -> None:
        level = self._levels.get(waiting.priority)
        if level is None:
            level = self._levels[waiting.priority] = LateLine(self._slo_ttft_s)
        level.add(waiting)
        self.waiting += 1
        self.tokens += waiting.tokens

    def remove(self, waiting: _Waiting) -> None:
        waiting.is_gone = True
        self.waiting -= 1
        self.tokens -= waiting.tokens
        level = self._levels[waiting.priority]
        level.trim()
        if not level:
            del self._levels[waiting.priority]

    def sort(self, now_s: float, first_token_s: Callable[[int], float]) -> None:
        for level in self._levels.values():
            level.sort(now_s, first_token_s)

    def entered(self, waiting: _Waiting, work: float) -> None:
        if level := self._levels.get(waiting.priority):
            level.entered(waiting, work)

    def picture(self, served_tokens: float, now_s: float, is_open: bool) -> TenantQueue:
        lines = [self._levels[priority] for priority in sorted(self._levels)]
        first = [line.head(_work) if is_open else line.oldest for line in lines]
        heads = tuple(waiting.request(now_s) for waiting in first)
        lowest = lines[-1]
        tail = lowest.tail.request(now_s)
        return TenantQueue(self.tenant, self.weight, served_tokens, heads, self.waiting, tail, self.tokens)


def _work(waiting: _Waiting) -> float:
    return charge(waiting.request(waiting.arrived_s))


def _now_s() -> float:
    return asyncio.get_running_loop().time()
