"""Which replica gets a request? The one with the least work in tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.policy import NOTHING_CACHED, ReplicaSnapshot, RequestFeatures, Route


class LeastTokens:
    """Least loaded by tokens: KV held, prompts that wait, and what this ingress has just sent."""

    def route(
        self,
        request: RequestFeatures,
        replicas: Sequence[ReplicaSnapshot],
        cached_tokens: Mapping[str, int] = NOTHING_CACHED,
    ) -> Route:
        """Ties go to the lowest id, so that equal pictures give equal answers."""
        candidates = [r for r in replicas if r.ready and not r.draining]
        if not candidates:
            return Route(None, _why_none(replicas))
        best = min(candidates, key=lambda r: (load_tokens(r), r.replica_id))
        return Route(best.replica_id, "least_tokens")


def load_tokens(replica: ReplicaSnapshot) -> int:
    """Tokens of work ahead of a new request.

    The replica's report lags behind what this ingress sent it, and the ingress does not see what
    others sent: the larger of both views counts.
    """
    return max(replica.kv_tokens_used + replica.waiting_prompt_tokens, replica.outstanding_tokens)


def _why_none(replicas: Sequence[ReplicaSnapshot]) -> str:
    if not replicas:
        return "no replica is known"
    if all(r.draining for r in replicas):
        return "every replica is draining"
    return "no replica is ready"
