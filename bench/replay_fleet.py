"""What would the caches and queues of a fleet have been if one policy had routed a trace? No engine, no steps.

A replica is an LRU cache of blocks, a queue of prompts at a fixed rate, and streams of a fixed pace. An ingress knows
its own requests at once, and of replicas what they reported last.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bench.prefix_trace import BLOCK_TOKENS, TracedRequest
from cluster.fading_sum import FadingSum
from cluster.policy import ReplicaSnapshot, RequestFeatures, RouterPolicy, StepSpeed
from deployments.policies.prefix_index import PrefixIndex
from deployments.policies.router import TYPICAL_SPEED

REPORT_S = 0.25
ITL_S = 0.03


@dataclass(frozen=True, slots=True)
class _Flight:
    """One request under way."""

    first_token_s: float
    end_s: float
    uncached_tokens: int
    tokens: int


class CachedReplica:
    """One replica: what its cache holds, and what is queued."""

    def __init__(self, replica_id: str, kv_tokens: int, speed: StepSpeed) -> None:
        self.replica_id = replica_id
        self.kv_tokens = kv_tokens
        self.served_tokens = 0  # prompt and output
        self.served_requests = 0
        self._speed = speed
        self._capacity = kv_tokens // BLOCK_TOKENS
        self._cache: OrderedDict[int, None] = OrderedDict()
        self._free_at_s = 0.0
        self._running: list[tuple[float, int]] = []
        self._stored: list[int] = []
        self._dropped: list[int] = []

    def serve(self, now_s: float, request: TracedRequest) -> tuple[int, _Flight]:
        """Tokens of the prompt that were in the cache, and until when it runs."""
        blocks = request.blocks
        hit = 0
        while hit < len(blocks) and blocks[hit] in self._cache:
            hit += 1
        hit_tokens = min(hit * BLOCK_TOKENS, request.input_tokens)
        self._touch(blocks)
        uncached = request.input_tokens - hit_tokens
        self._free_at_s = max(self._free_at_s, now_s) + uncached * self._speed.prefill_token_s
        first_s = max(self._free_at_s, now_s + ITL_S)
        tokens = request.input_tokens + request.output_tokens
        flight = _Flight(first_s, first_s + request.output_tokens * ITL_S, uncached, tokens)
        heapq.heappush(self._running, (flight.end_s, tokens))
        self.served_tokens += tokens
        self.served_requests += 1
        return hit_tokens, flight

    def _touch(self, blocks: Sequence[int]) -> None:
        """As vLLM frees a sequence: the end of the prompt is evicted first."""
        for block in reversed(blocks):
            if block in self._cache:
                self._cache.move_to_end(block)
            else:
                self._cache[block] = None
                self._stored.append(block)
        while len(self._cache) > self._capacity:
            self._dropped.append(self._cache.popitem(last=False)[0])

    def events(self) -> tuple[list[int], list[int]]:
        """Blocks stored and dropped since the last call; one that was both is dropped."""
        stored, dropped = self._stored, self._dropped
        self._stored, self._dropped = [], []
        return [block for block in stored if block in self._cache], [b for b in dropped if b not in self._cache]

    def report(self, now_s: float) -> ReplicaSnapshot:
        """The picture that it sends."""
        while self._running and self._running[0][0] <= now_s:
            heapq.heappop(self._running)
        used = min(sum(tokens for _, tokens in self._running), self.kv_tokens)
        queued = round(max(self._free_at_s - now_s, 0.0) / self._speed.prefill_token_s)
        return ReplicaSnapshot(
            self.replica_id, True, False, len(self._running), 0, 0, used, self.kv_tokens, 0, queued, 0.0, self._speed
        )


class Ingress:
    """One process that routes: its index, its own requests, the last reports."""

    def __init__(self, policy: RouterPolicy, max_blocks: int) -> None:
        self._policy = policy
        self._index = PrefixIndex(max_blocks)
        self._reports: dict[str, tuple[float, ReplicaSnapshot]] = {}
        self._ends: list[tuple[float, int, str, int]] = []
        self._firsts: list[tuple[float, int, str, int]] = []
        self._outstanding: Counter[str] = Counter()
        self._unfilled: Counter[str] = Counter()
        self._recent: defaultdict[str, FadingSum] = defaultdict(FadingSum)

    def told(self, now_s: float, report: ReplicaSnapshot, stored: Sequence[int], dropped: Sequence[int]) -> None:
        """A report has come."""
        self._settle(now_s)
        self._reports[report.replica_id] = (now_s, report)
        self._index.drop(report.replica_id, dropped)
        self._index.store(report.replica_id, stored)
        self._index.reported(report.replica_id)

    def route(self, now_s: float, request: TracedRequest) -> str:
        """The replica that gets it."""
        self._settle(now_s)
        features = RequestFeatures(request.input_tokens, request.output_tokens, "", request.blocks)
        cached = {r: blocks * BLOCK_TOKENS for r, blocks in self._index.match(request.blocks).items()}
        replicas = [self._picture(now_s, at_s, report) for at_s, report in self._reports.values()]
        route = self._policy.route(features, replicas, cached)
        assert route.replica_id is not None
        return route.replica_id

    def sent(self, now_s: float, request: TracedRequest, replica_id: str, flight: _Flight) -> None:
        """It went there; what it is thought to have in flight grows."""
        self._recent[replica_id].add(flight.tokens, now_s)
        ticket = self._index.expect(replica_id, request.blocks)
        heapq.heappush(self._ends, (flight.end_s, ticket, replica_id, flight.tokens))
        heapq.heappush(self._firsts, (flight.first_token_s, ticket, replica_id, flight.uncached_tokens))
        self._outstanding[replica_id] += flight.tokens
        self._unfilled[replica_id] += flight.uncached_tokens

    def _settle(self, now_s: float) -> None:
        while self._firsts and self._firsts[0][0] <= now_s:
            _, ticket, replica_id, uncached_tokens = heapq.heappop(self._firsts)
            self._unfilled[replica_id] -= uncached_tokens
            self._index.settle(ticket)
        while self._ends and self._ends[0][0] <= now_s:
            _, _, replica_id, tokens = heapq.heappop(self._ends)
            self._outstanding[replica_id] -= tokens

    def _picture(self, now_s: float, at_s: float, report: ReplicaSnapshot) -> ReplicaSnapshot:
        replica_id = report.replica_id
        return ReplicaSnapshot(
            replica_id,
            True,
            False,
            report.running,
            0,
            0,
            report.kv_tokens_used,
            report.kv_tokens_total,
            self._outstanding[replica_id],
            max(report.prefill_tokens, self._unfilled[replica_id]),
            now_s - at_s,
            report.speed,
            self._recent[replica_id].at(now_s),
        )


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of it. Loads are tokens served, prompt and output; 1.0 is the mean of the replicas."""

    hit_ratio: float
    max_load: float
    most_requests: float
    ttft_mean_s: float
    ttft_p99_s: float


def replay(
    trace: Sequence[TracedRequest],
    policies: Sequence[RouterPolicy],
    replicas: int,
    kv_tokens: int,
    speed: StepSpeed = TYPICAL_SPEED,
) -> Replayed:
    """One policy object per ingress process; requests go to them in turn."""
    fleet = {f"r{i}": CachedReplica(f"r{i}", kv_tokens, speed) for i in range(replicas)}
    ingresses = [Ingress(policy, 2 * replicas * kv_tokens // BLOCK_TOKENS) for policy in policies]
    hit_tokens, ticks, waits = 0, -1, []
    for number, request in enumerate(trace):
        if int(request.at_s / REPORT_S) > ticks:
            ticks = int(request.at_s / REPORT_S)
            for replica in fleet.values():
                report, events = replica.report(ticks * REPORT_S), replica.events()
                for ingress in ingresses:
                    ingress.told(ticks * REPORT_S, report, *events)
        ingress = ingresses[number % len(ingresses)]
        chosen = ingress.route(request.at_s, request)
        hit, flight = fleet[chosen].serve(request.at_s, request)
        ingress.sent(request.at_s, request, chosen, flight)
        hit_tokens += hit
        waits.append(flight.first_token_s - request.at_s)
    served = [replica.served_tokens for replica in fleet.values()]
    waits.sort()
    return Replayed(
        hit_tokens / sum(request.input_tokens for request in trace),
        max(served) * replicas / sum(served),
        max(replica.served_requests for replica in fleet.values()) / len(trace),
        sum(waits) / len(waits),
        waits[len(waits) * 99 // 100],
    )
