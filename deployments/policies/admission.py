"""Who of those that wait enters next, and who need not wait any longer? By work, not by requests; docs/admission.md.

1. Whoever can never enter, or cannot meet its deadline even now, is refused; so is the newest of a tenant that would
   wait longer than is useful, while those with less before them stay.
2. The highest priority is next, but a lower one that waits gets a tenth of the work.
3. Within a priority the tenant with the lowest virtual counter is next, with its oldest request.
4. If that one does not fit, all wait for it: nobody overtakes it, so large requests enter, too. One that is larger
   than all the room enters alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from cluster.policy import AdmissionSnapshot, Admitted, QueuedRequest, Refused, StepSpeed, TenantQueue

RefusalReason = Literal["too_large", "no_replica", "deadline_unmeetable", "queue_full"]

# A token put out costs a step of its own and holds the batch. Source: VTC, section 5.1, after the prices of services.
OUTPUT_WEIGHT = 2.0
# Of the work that enters, so much is a lower priority's while it waits; the rest may pass it by.
LOWER_SHARE = 0.1
# How long a request of each priority may be expected to wait. Beyond, another server or a later attempt serves the
# caller better; gRPC's and proxies' usual deadlines are 30 to 60 s, batch jobs wait for minutes.
MAX_WAIT_S = (30.0, 60.0, 600.0)
MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class FairAdmission:
    """Priorities, and weighted fair shares of the tenants within each; `hold_s` is the wait for a first replica."""

    hold_s: float = 30.0

    def decide(self, picture: AdmissionSnapshot) -> Admitted | Refused | None:
        """Equal pictures give equal answers, whatever the order of their tenants."""
        refusals = [*self._refusals(picture)]
        if refusals:
            return min(refusals, key=lambda refused: (refused.tenant, refused.request_id, refused.reason))
        if not picture.ready_replicas:
            return None
        found = self._next(picture)
        if found is None or not _fits(picture, *found):
            return None
        queue, request = found
        return Admitted(request.request_id, queue.tenant, charge(request))

    def passed_after(
        self, passed: tuple[float, ...], priority: int, work: float, waiting: Collection[int]
    ) -> tuple[float, ...]:
        """`passed_tokens` once a request entered; `waiting` are the priorities that wait then."""
        paid = work * (1 / LOWER_SHARE - 1)
        after = [tokens + work if level > priority else tokens for level, tokens in enumerate(passed)]
        after[priority] = max(0.0, after[priority] - paid)
        return tuple(tokens if level in waiting else 0.0 for level, tokens in enumerate(after))

    def _next(self, picture: AdmissionSnapshot) -> tuple[TenantQueue, QueuedRequest] | None:
        best: dict[int, tuple[TenantQueue, QueuedRequest]] = {}
        for queue in picture.tenants:
            for request in queue.heads:
                known = best.get(request.priority)
                if known is None or _order(queue, request) < _order(*known):
                    best[request.priority] = queue, request
        if not best:
            return None
        strict = min(best)
        owed = 1 / LOWER_SHARE - 1
        ratios = {p: picture.passed_tokens[p] / charge(request) for p, (_, request) in best.items() if p > strict}
        overdue = [p for p, ratio in ratios.items() if ratio >= owed]
        return best[max(overdue, key=lambda p: (ratios[p], -p)) if overdue else strict]

    def _refusals(self, picture: AdmissionSnapshot) -> Iterator[Refused]:
        if not picture.ready_replicas:
            yield from self._without_replica(picture)
            return
        speed = picture.speed
        if picture.kv_tokens_replica or speed is not None:
            for queue in picture.tenants:
                for request in queue.heads:
                    if picture.kv_tokens_replica and request.prompt_tokens + 1 > picture.kv_tokens_replica:
                        yield _refused(queue, request, "too_large", math.inf)
                    elif speed is not None and _takes_s(picture, speed, request) > request.deadline_in_s:
                        yield _refused(queue, request, "deadline_unmeetable", _retry_s(picture, speed, request))
        yield from self._too_late(picture)

    def _too_late(self, picture: AdmissionSnapshot) -> Iterator[Refused]:
        """The newest of those tenants that would wait too long, or past its deadline."""
        waits_s = predicted_waits_s(picture)
        for queue in picture.tenants:
            tail, wait_s = queue.tail, waits_s.get(queue.tenant, 0.0)
            # One that waits alone is next: it waits for room, not for others.
            if tail is None or queue.waiting < 2:
                continue
            after_s = 0.0 if picture.speed is None else _takes_s(picture, picture.speed, tail)
            if wait_s + after_s > tail.deadline_in_s:
                yield _refused(queue, tail, "deadline_unmeetable", wait_s)
            elif wait_s > MAX_WAIT_S[tail.priority]:
                yield _refused(queue, tail, "queue_full", wait_s / 2)

    def _without_replica(self, picture: AdmissionSnapshot) -> Iterator[Refused]:
        for queue in picture.tenants:
            for request in queue.heads:
                if math.isinf(picture.starting_in_s) or request.waited_s >= self.hold_s:
                    yield _refused(queue, request, "no_replica", MIN_RETRY_S)
                elif request.deadline_in_s < picture.starting_in_s:
                    yield _refused(queue, request, "deadline_unmeetable", picture.starting_in_s)


def work_tokens(prompt_tokens: float, output_tokens: float, sequences: int = 1) -> float:
    """The work of a request, in prompt tokens."""
    return sequences * (prompt_tokens + OUTPUT_WEIGHT * output_tokens)


def charge(request: QueuedRequest) -> float:
    """What its tenant's counter grows by, before the weight."""
    return work_tokens(request.prompt_tokens, request.expected_output_tokens, request.sequences)


def predicted_waits_s(picture: AdmissionSnapshot) -> Mapping[str, float]:
    """When each tenant's last request will enter if others enter as fast as they did; empty if nobody knows.

    As every tenant gets its share, others are before it with no more than its own backlog by weight.
    """
    if picture.entered_tokens_per_s <= 0:
        return {}
    queues = sorted(picture.tenants, key=lambda queue: queue.waiting_tokens / queue.weight)
    weights_left = sum(queue.weight for queue in queues)
    waits_s: dict[str, float] = {}
    smaller_tokens = 0.0
    for queue in queues:
        ahead = smaller_tokens + queue.waiting_tokens / queue.weight * weights_left
        waits_s[queue.tenant] = ahead / picture.entered_tokens_per_s
        smaller_tokens += queue.waiting_tokens
        weights_left -= queue.weight
    return waits_s


def predicted_ttft_s(picture: AdmissionSnapshot, speed: StepSpeed, prompt_tokens: int) -> float:
    """Of a request that entered now: the prompts before it and its own, in steps that decode meanwhile."""
    tokens = picture.prefill_tokens + prompt_tokens
    steps = math.ceil(tokens / max(1, speed.max_step_tokens))
    decoding_s = speed.step_s(0, picture.replica_running, picture.replica_context_tokens)
    return tokens * speed.prefill_token_s + steps * decoding_s


def _takes_s(picture: AdmissionSnapshot, speed: StepSpeed, request: QueuedRequest) -> float:
    """From now to its end, if it entered now."""
    if math.isinf(request.deadline_in_s):
        return 0.0
    running, context = picture.replica_running + request.sequences, picture.replica_context_tokens
    step_s = speed.step_s(0, running, context + request.kv_tokens)
    return predicted_ttft_s(picture, speed, request.prompt_tokens) + request.expected_output_tokens * step_s


def _retry_s(picture: AdmissionSnapshot, speed: StepSpeed, request: QueuedRequest) -> float:
    """When the deadline could be met; never if an idle replica could not either."""
    prefill_s = speed.prefill_token_s * request.prompt_tokens + speed.fixed_s
    alone_s = prefill_s + request.expected_output_tokens * speed.step_s(0, request.sequences, request.kv_tokens)
    if alone_s > request.deadline_in_s:
        return math.inf
    return picture.prefill_tokens * speed.prefill_token_s


def _fits(picture: AdmissionSnapshot, queue: TenantQueue, request: QueuedRequest) -> bool:
    if picture.kv_tokens_free >= picture.kv_tokens_total:
        return True
    free: tuple[float, ...] = picture.kv_tokens_free, picture.sequences_free, picture.prefill_tokens_free
    if queue.served_tokens >= picture.level_tokens:
        later = picture.kv_tokens_later, picture.sequences_later, picture.prefill_tokens_later
        free = tuple(map(min, free, later))
    kv_tokens, sequences, prefill_tokens = free
    return request.kv_tokens <= kv_tokens and request.sequences <= sequences and prefill_tokens > 0


def _order(queue: TenantQueue, request: QueuedRequest) -> tuple[float, float, str, str]:
    return queue.served_tokens, -request.waited_s, queue.tenant, request.request_id


def _refused(queue: TenantQueue, request: QueuedRequest, reason: RefusalReason, retry_s: float) -> Refused:
    bounded_s = retry_s if math.isinf(retry_s) else min(max(retry_s, MIN_RETRY_S), MAX_RETRY_S)
    return Refused(request.request_id, queue.tenant, reason, bounded_s)
