"""How does llm-d's scheduler route? Its published scorers and pickers, re-implemented for comparison in the same run.

As of September 2025 (llm-d-inference-scheduler v0.2, gateway-api-inference-extension v0.5.1): the versions behind the
published 37-capacity figures. Dice are a counted hash, so that equal runs give equal answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.policy import NOTHING_CACHED, ReplicaSnapshot, RequestFeatures, Route
from deployments.policies.router import ready_replicas

_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class ScorerWeights:
    """How much each score of 0..1 counts.

    `spreads_prefix`: the prefix score is spread over those that have anything (the precise scorer), else it is the
    share of the prompt's blocks.
    """

    queue: float = 1.0
    kv_cache: float = 1.0
    prefix: float = 0.0
    spreads_prefix: bool = False


# The three published configurations that score. "default" is listed with 1, 1, 2, but ran with 1, 1, 1: its authors
# said so when they raised the chart's weights (kubernetes-sigs/gateway-api-inference-extension, pull request 1827).
LOAD = ScorerWeights()
DEFAULT = ScorerWeights(prefix=1.0)
PRECISE = ScorerWeights(prefix=2.0, spreads_prefix=True)


class WeightedScores:
    """The replica with the highest weighted sum of scores; dice among equals.

    Source: queue.go, kvcache_utilization.go, prefix/plugin.go, precise_prefix_cache.go, max_score_picker.go.
    """

    def __init__(self, weights: ScorerWeights, seed: int = 0) -> None:
        self._weights = weights
        self._dice = Dice(seed)

    def route(
        self,
        request: RequestFeatures,
        replicas: Sequence[ReplicaSnapshot],
        cached_tokens: Mapping[str, int] = NOTHING_CACHED,
    ) -> Route:
        """Looks at each ready replica's queue, KV share and prefix."""
        ready = ready_replicas(replicas)
        if not ready:
            return Route(None, "no replica is ready")
        weights = self._weights
        shortest, longest = min(r.waiting for r in ready), max(r.waiting for r in ready)
        prefix = self._prefix_scores(request, cached_tokens) if weights.prefix else {}
        best: list[ReplicaSnapshot] = []
        best_score = -1.0
        for replica in ready:
            queue = (longest - replica.waiting) / (longest - shortest) if longest > shortest else 1.0
            score = (
                weights.queue * queue
                + weights.kv_cache * (1 - replica.kv_tokens_used / replica.kv_tokens_total)
                + weights.prefix * prefix.get(replica.replica_id, 0.0)
            )
            if score > best_score:
                best, best_score = [], score
            if score == best_score:
                best.append(replica)
        chosen = best[self._dice.below(len(best))].replica_id
        return Route(chosen, "score", cached_tokens.get(chosen, 0))

    def _prefix_scores(self, request: RequestFeatures, cached_tokens: Mapping[str, int]) -> dict[str, float]:
        if not self._weights.spreads_prefix:
            return {name: tokens / request.prompt_tokens for name, tokens in cached_tokens.items()}
        least, most = min(cached_tokens.values(), default=0), max(cached_tokens.values(), default=0)
        if least == most:
            return dict.fromkeys(cached_tokens, 1.0)
        return {name: (tokens - least) / (most - least) for name, tokens in cached_tokens.items()}


class RandomPick:
    """Any ready replica. Source: random_picker.go."""

    def __init__(self, seed: int = 0) -> None:
        self._dice = Dice(seed)

    def route(
        self,
        request: RequestFeatures,
        replicas: Sequence[ReplicaSnapshot],
        cached_tokens: Mapping[str, int] = NOTHING_CACHED,
    ) -> Route:
        """Looks at nothing."""
        ready = ready_replicas(replicas)
        if not ready:
            return Route(None, "no replica is ready")
        chosen = ready[self._dice.below(len(ready))].replica_id
        return Route(chosen, "random", cached_tokens.get(chosen, 0))


class Dice:
    """Numbers that look random, the same ones for a seed (splitmix64)."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _WORD

    def below(self, count: int) -> int:
        """From 0 to `count - 1`."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _WORD
        word = self._state
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
        return (word ^ (word >> 31)) % count


class RoutedIndex:
    """The approximate index: what was routed to a replica counts as cached there, until newer blocks push it out.

    Only the first `max_match_blocks` of a prompt are looked at, and counted as all of it. Source: prefix/plugin.go and
    indexer.go (64 bytes a block, 256 blocks of a prompt, 31,250 blocks of a replica).
    """

    def __init__(self, max_match_blocks: int, max_blocks_per_replica: int) -> None:
        self._max_match = max_match_blocks
        self._max_blocks = max_blocks_per_replica
        self._held: dict[str, OrderedDict[int, None]] = {}

    def match(self, hashes: Sequence[int]) -> dict[str, int]:
        """How many blocks each replica is thought to have; a match of all that is looked at is one of all."""
        looked = hashes[: self._max_match]
        found: dict[str, int] = {}
        for replica_id, held in self._held.items():
            # As published: any of the blocks counts, since a chain without its beginning is rare.
            count = sum(1 for block in looked if block in held)
            if count:
                found[replica_id] = count * len(hashes) // len(looked)
        return found

    def expect(self, replica_id: str, hashes: Sequence[int]) -> int:
        """It was routed there."""
        held = self._held.setdefault(replica_id, OrderedDict())
        for block in hashes[: self._max_match]:
            held[block] = None
            held.move_to_end(block)
        while len(held) > self._max_blocks:
            held.popitem(last=False)
        return 0

    def settle(self, ticket: int) -> None:
        """It does not look at answers."""

    def store(self, replica_id: str, hashes: Sequence[int]) -> None:
        """It does not listen to replicas."""

    def drop(self, replica_id: str, hashes: Iterable[int]) -> None:
        """It does not listen to replicas."""

    def reported(self, replica_id: str) -> None:
        """It does not listen to replicas."""

    def forget(self, replica_id: str) -> None:
        """The replica is gone."""
        self._held.pop(replica_id, None)


class ReportedIndex:
    """The precise index: the blocks that replicas say they have. Source: kvblock_scorer.go, LongestPrefixScorer."""

    def __init__(self) -> None:
        self._held: dict[str, set[int]] = {}

    def match(self, hashes: Sequence[int]) -> dict[str, int]:
        """How many blocks each replica has, from the first on without a gap."""
        found: dict[str, int] = {}
        for replica_id, held in self._held.items():
            count = 0
            for block in hashes:
                if block not in held:
                    break
                count += 1
            if count:
                found[replica_id] = count
        return found

    def expect(self, replica_id: str, hashes: Sequence[int]) -> int:
        """It does not look at its own routes."""
        return 0

    def settle(self, ticket: int) -> None:
        """It does not look at answers."""

    def store(self, replica_id: str, hashes: Sequence[int]) -> None:
        """The replica has these blocks now."""
        self._held.setdefault(replica_id, set()).update(hashes)

    def drop(self, replica_id: str, hashes: Iterable[int]) -> None:
        """The replica no longer has these blocks."""
        self._held.setdefault(replica_id, set()).difference_update(hashes)

    def reported(self, replica_id: str) -> None:
        """Reports and events are not tied together."""

    def forget(self, replica_id: str) -> None:
        """The replica is gone."""
        self._held.pop(replica_id, None)
