"""Which replica computes a sequence? Asks the policy with what the fleet knows, then hands the sequence over."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from functools import partial

from cluster.policy import NOTHING_CACHED, RequestFeatures, Route, RouterPolicy
from deployments.choices import Job
from deployments.fleet import Fleet
from deployments.metrics import Metrics
from deployments.policies.ttft import ttft_s
from deployments.sequence_stream import Forecast, SequenceStream
from llama31.engine import EngineRequest
from llama31.errors import NoReadyReplica
from llama31.prefix_blocks import ROUTING_BLOCK_TOKENS, block_hashes

# What the worker protocol can say, 49 days; gRPC clients may ask for ten thousand years.
MAX_DEADLINE_MS = 2**32 - 1
# Longer prompts are hashed in a thread: a quarter of a millisecond.
HASH_IN_THREAD_TOKENS = 16_384


class Router:
    """Routes one model's sequences; its `submit` is what choices ask."""

    def __init__(self, model: str, fleet: Fleet, policy: RouterPolicy, metrics: Metrics) -> None:
        self._model = model
        self._fleet = fleet
        self._policy = policy
        self._metrics = metrics
        self._real_to_predicted = metrics.child("llama31_ttft_real_to_predicted", model=model)
        self._cached_tokens_total = metrics.child("llama31_route_cached_tokens_total", model=model)

    async def blocks_of(self, token_ids: Sequence[int], salt: str) -> tuple[int, ...]:
        """The names of a prompt's blocks; none where nobody would look for them."""
        if len(token_ids) < ROUTING_BLOCK_TOKENS or not self._fleet.indexed_replicas():
            return ()
        if len(token_ids) <= HASH_IN_THREAD_TOKENS:
            return block_hashes(token_ids, salt)
        return await asyncio.to_thread(block_hashes, token_ids, salt)

    async def wait_changed(self) -> None:
        """Returns when the next `submit` may find another fleet."""
        await self._fleet.wait_changed(self._fleet.version)

    def submit(
        self, job: Job, request: EngineRequest, attempt: int, avoid: str | None, digest: int | None
    ) -> SequenceStream:
        """Gives a sequence of the job to a replica other than `avoid`, of that digest. Raises: NoReadyReplica."""
        features = RequestFeatures(
            prompt_tokens=len(request.prompt_token_ids) + len(request.output_token_ids),
            max_output_tokens=request.limits.max_output_tokens,
            affinity_key=job.options.affinity_key,
            block_hashes=job.blocks,
        )
        candidates = [s for s in self._fleet.snapshots(digest) if s.replica_id != avoid]
        route = self._policy.route(features, candidates, self._cached_tokens(job.blocks))
        if route.replica_id is None:
            raise NoReadyReplica(self._model, self._fleet.state())
        self._count(route, features)
        forecast = Forecast(job.blocks, route.cached_tokens, partial(self._compare, route.ttft_s, _now_s()))
        link = self._fleet.link(route.replica_id)
        stream = link.submit(request, attempt, _deadline_in_ms(job), job.trace, forecast)
        stream.progress = job.progress
        return stream

    def _cached_tokens(self, blocks: Sequence[int]) -> Mapping[str, int]:
        if not self._fleet.indexed_replicas():
            return NOTHING_CACHED
        found = self._fleet.index.match(blocks)
        return {replica_id: count * ROUTING_BLOCK_TOKENS for replica_id, count in found.items()}

    def _count(self, route: Route, features: RequestFeatures) -> None:
        is_short = route.reason == "no_index" and not features.block_hashes and self._fleet.indexed_replicas() > 0
        reason = "short_prompt" if is_short else route.reason
        self._metrics.add("llama31_routes_total", model=self._model, reason=reason)
        self._cached_tokens_total.inc(route.cached_tokens)

    def _compare(self, predicted_s: float | None, submitted_s: float) -> None:
        """The first token is there."""
        if predicted_s:
            self._real_to_predicted.observe((_now_s() - submitted_s) / predicted_s)

    def backlog_s(self) -> float:
        """What is queued where it is shortest, as time to a first token; 0 where no replica tells its speed."""
        ready = (replica for replica in self._fleet.snapshots() if replica.ready and not replica.draining)
        waits_s = [ttft_s(replica, replica.speed, 0, 0) for replica in ready if replica.speed is not None]
        return min(waits_s, default=0.0)


def _deadline_in_ms(job: Job) -> int:
    """For the replica's timer; 0: none."""
    if job.call.deadline_s is None:
        return 0
    # Rounded up: the replica's timer is the second line, it must not be the first to fire.
    return min(max(1, math.ceil((job.call.deadline_s - _now_s()) * 1000)), MAX_DEADLINE_MS)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
