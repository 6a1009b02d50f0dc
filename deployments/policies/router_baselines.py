"""What do others do? Round robin, power of two, sticky prefix and the like, for comparison in the same run.

Each is as pure as ours: dice are a hash of the request, and a counter is handed out by whoever asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

from cluster.policy import NOTHING_CACHED, ReplicaSnapshot, RequestFeatures, Route
from deployments.policies.router import LeastTokens, load_tokens, ready_replicas, why_none


class RoundRobin:
    """Each replica in turn, by its rank among the ready ones. It alone has a state: how many it has sent."""

    def __init__(self, sent: int = 0) -> None:
        self.sent = sent

    def route(
        self,
        request: RequestFeatures,
        replicas: Sequence[ReplicaSnapshot],
        cached_tokens: Mapping[str, int] = NOTHING_CACHED,
    ) -> Route:
        """Looks at no load."""
        ready = sorted(ready_replicas(replicas), key=_id)
        if not ready:
            return Route(None, why_none(replicas))
        chosen = ready[self.sent % len(ready)]
        self.sent += 1
        return _route(chosen, "round_robin", cached_tokens)


class PowerOfTwo:
    """The less loaded of two that the request's own hash picks."""

    def route(
        self,
        request: RequestFeatures,
        replicas: Sequence[ReplicaSnapshot],
        cached_tokens: Mapping[str, int] = NOTHING_CACHED,
    ) -> Route:
        """Equal requests get equal pairs."""
        ready = sorted(ready_replicas(replicas), key=_id)
        if not ready:
            return Route(None, why_none(replicas))
        dice = _dice((request.affinity_key, request.prompt_tokens, *request.block_hashes[-1:]))
        first = dice % len(ready)
        second = (first + 1 + dice // len(ready) % max(len(ready) - 1, 1)) % len(ready)
        chosen = min((ready[first], ready[second]), key=lambda r: (load_tokens(r), r.replica_id))
        return _route(chosen, "power_of_two", cached_tokens)


class PrefixHash:
    """The first blocks' hash decides: hits without any index, and no look at the load."""

    def __init__(self, blocks: int = 2) -> None:
        self._blocks = blocks

    def route(
        self,
        request: RequestFeatures,
        replicas: Sequence[ReplicaSnapshot],
        cached_tokens: Mapping[str, int] = NOTHING_CACHED,
    ) -> Route:
        """Rendezvous hashing: a replica that goes away moves its own prompts only."""
        ready = ready_replicas(replicas)
        if not ready:
            return Route(None, why_none(replicas))
        key = request.block_hashes[: self._blocks]
        chosen = max(ready, key=lambda r: (_dice((*key, r.replica_id)), r.replica_id))
        return _route(chosen, "prefix_hash", cached_tokens)


class LongestPrefix:
    """Most cached tokens wins; the load breaks ties. With one system prompt for all, one replica gets all."""

    def route(
        self,
        request: RequestFeatures,
        replicas: Sequence[ReplicaSnapshot],
        cached_tokens: Mapping[str, int] = NOTHING_CACHED,
    ) -> Route:
        """No guard."""
        ready = ready_replicas(replicas)
        if not ready:
            return Route(None, why_none(replicas))
        chosen = min(ready, key=lambda r: (-cached_tokens.get(r.replica_id, 0), load_tokens(r), r.replica_id))
        return _route(chosen, "longest_prefix", cached_tokens)


class StickyUntilSaturated:
    """Stays with those that hold 0.8 of the prompt until they lead by what the fleet computes in 14 s.

    Then, and for new prompts, the fewest uncached tokens in flight, the request's own included.
    Source: llm-d's default since 2026-08: tau = R_peak x T_max, for Qwen3-32B TP2 20,480 tokens/s x 14 s.
    """

    def __init__(self, warm_share: float = 0.8, lead_tokens: int = 286_720) -> None:
        self._warm_share = warm_share
        self._lead_tokens = lead_tokens

    def route(
        self,
        request: RequestFeatures,
        replicas: Sequence[ReplicaSnapshot],
        cached_tokens: Mapping[str, int] = NOTHING_CACHED,
    ) -> Route:
        """In flight are the prompt tokens that a replica has still to compute."""
        ready = ready_replicas(replicas)
        if not ready:
            return Route(None, why_none(replicas))
        warm = [r for r in ready if cached_tokens.get(r.replica_id, 0) >= self._warm_share * request.prompt_tokens]
        least = min(r.prefill_tokens for r in ready)
        if warm:
            chosen = min(warm, key=_in_flight)
            if chosen.prefill_tokens - least <= self._lead_tokens:
                return _route(chosen, "sticky", cached_tokens)

        def with_own(replica: ReplicaSnapshot) -> tuple[int, int, str]:
            own = request.prompt_tokens - cached_tokens.get(replica.replica_id, 0)
            return replica.prefill_tokens + own, load_tokens(replica), replica.replica_id

        return _route(min(ready, key=with_own), "in_flight", cached_tokens)


class LoadAndUncached:
    """The smallest sum of tokens of work and of the request's uncached tokens."""

    def route(
        self,
        request: RequestFeatures,
        replicas: Sequence[ReplicaSnapshot],
        cached_tokens: Mapping[str, int] = NOTHING_CACHED,
    ) -> Route:
        """One sum, no threshold."""
        ready = ready_replicas(replicas)
        if not ready:
            return Route(None, why_none(replicas))
        chosen = min(ready, key=lambda r: (load_tokens(r) - cached_tokens.get(r.replica_id, 0), r.replica_id))
        return _route(chosen, "load_and_uncached", cached_tokens)


BASELINES = {
    "round robin": RoundRobin,
    "least tokens": LeastTokens,
    "power of two": PowerOfTwo,
    "hash of 2 blocks": PrefixHash,
    "longest prefix": LongestPrefix,
    "sticky until saturated": StickyUntilSaturated,
    "load and uncached": LoadAndUncached,
}


def _id(replica: ReplicaSnapshot) -> str:
    return replica.replica_id


def _in_flight(replica: ReplicaSnapshot) -> tuple[int, int, str]:
    return replica.prefill_tokens, load_tokens(replica), replica.replica_id


def _route(chosen: ReplicaSnapshot, reason: str, cached_tokens: Mapping[str, int]) -> Route:
    return Route(chosen.replica_id, reason, cached_tokens.get(chosen.replica_id, 0))


def _dice(of: tuple[object, ...]) -> int:
    return int.from_bytes(blake2b(repr(of).encode(), digest_size=8).digest(), "big")
