"""Which replica computes a sequence? Asks the policy with what the fleet knows, then hands the sequence over."""

from __future__ import annotations

import asyncio
import math

from cluster.policy import RequestFeatures, RouterPolicy
from deployments.choices import Job
from deployments.fleet import Fleet
from deployments.replica_link import SequenceStream
from llama31.engine import EngineRequest
from llama31.errors import NoReadyReplica

# What the worker protocol can say, 49 days; gRPC clients may ask for ten thousand years.
MAX_DEADLINE_MS = 2**32 - 1


class Router:
    """Routes one model's sequences; its `submit` is what choices ask."""

    def __init__(self, model: str, fleet: Fleet, policy: RouterPolicy) -> None:
        self._model = model
        self._fleet = fleet
        self._policy = policy

    def submit(self, job: Job, request: EngineRequest, attempt: int, avoid: str | None) -> SequenceStream:
        """Gives a sequence of the job to a replica other than `avoid`. Raises: NoReadyReplica."""
        features = RequestFeatures(
            prompt_tokens=len(request.prompt_token_ids),
            max_output_tokens=request.limits.max_output_tokens,
            affinity_key=job.options.affinity_key,
        )
        candidates = [s for s in self._fleet.snapshots() if s.replica_id != avoid]
        route = self._policy.route(features, candidates)
        if route.replica_id is None:
            raise NoReadyReplica(self._model, self._fleet.state())
        return self._fleet.link(route.replica_id).submit(request, attempt, _deadline_in_ms(job), job.trace)


def _deadline_in_ms(job: Job) -> int:
    """For the replica's timer; 0: none."""
    if job.call.deadline_s is None:
        return 0
    # Rounded up: the replica's timer is the second line, it must not be the first to fire.
    left_s = job.call.deadline_s - asyncio.get_running_loop().time()
    return min(max(1, math.ceil(left_s * 1000)), MAX_DEADLINE_MS)
