"""Which replica gets a request? The one that is predicted to answer first, at the least cost to the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import fsum

from cluster.policy import NOTHING_CACHED, ReplicaSnapshot, RequestFeatures, Route, StepSpeed
from deployments.policies.ttft import ttft_s

# Stands in where no replica's speed is known: only its ratios decide then. 70B bf16 on 4 H100s: an 8k prompt in
# 585 ms, a step of one sequence 14.8 ms, 320 KiB of KV per token at 0.8 of 4 x 3.35 TB/s; 30 us a sequence is assumed.
TYPICAL_SPEED = StepSpeed(0.0148, 585e-3 / 8192, 30e-6, 30e-9, 8192)


@dataclass(frozen=True, slots=True)
class RouterWeights:
    """What the price of a replica is made of besides its predicted time to first token; docs/routing.md says why.

    `prefill_work`: how many times more the request's own prefill counts, which keeps whatever runs there waiting.
    `decode_share`: of the tokens to come, at the pace of the replica's decodes; 1: the price is that of the request's
    end, which decodes put off as a queue does. `imbalance`: of the tokens that it lately got beyond the mean, as if
    they were queued. A report older than `stale_after_s` costs the time beyond.
    Prices within `tie_share` of the price of computing the whole prompt, or within `tie_s`, are equal.
    """

    prefill_work: float = 4.0
    decode_share: float = 1.0
    imbalance: float = 0.02
    longest_output_tokens: int = 1024
    stale_after_s: float = 2.0
    tie_share: float = 0.02
    tie_s: float = 0.01


class PredictedTtft:
    """The lowest predicted time to first token, with a price on work that another replica would not have to do.

    Reasons: `prefix` (nobody has more of the prompt), `spread` (another has more of it, but is too busy),
    `least_loaded` (nobody has any of it), `short_prompt` (less than a block), and degraded: `stale`, `no_speed`,
    `no_index`.
    """

    def __init__(self, weights: RouterWeights | None = None) -> None:
        self._weights = weights or RouterWeights()

    def route(
        self,
        request: RequestFeatures,
        replicas: Sequence[ReplicaSnapshot],
        cached_tokens: Mapping[str, int] = NOTHING_CACHED,
    ) -> Route:
        """Goes on with whatever is known: nothing that is missing makes it refuse a replica that is ready."""
        candidates = ready_replicas(replicas)
        if not candidates:
            return Route(None, why_none(replicas))
        slowest = max((r.speed for r in candidates if r.speed is not None), key=_slowness, default=None)
        speed = slowest or TYPICAL_SPEED
        has_index = cached_tokens is not NOTHING_CACHED
        prices_s = self._prices_s(request, candidates, cached_tokens, speed)
        chosen = self._cheapest(request, candidates, prices_s, speed, is_sticky=not has_index)
        cached = min(cached_tokens.get(chosen.replica_id, 0), request.prompt_tokens)
        if chosen.age_s > self._weights.stale_after_s:
            reason = "stale"
        elif slowest is None:
            reason = "no_speed"
        elif not has_index:
            reason = "no_index"
        elif not request.block_hashes:
            reason = "short_prompt"
        else:
            reason = _why(cached, max(cached_tokens.get(r.replica_id, 0) for r in candidates))
        if slowest is None:
            return Route(chosen.replica_id, reason, cached)
        uncached = max(request.prompt_tokens - cached, 1)
        seconds = ttft_s(chosen, chosen.speed or speed, uncached, self._output_tokens(request))
        return Route(chosen.replica_id, reason, cached, seconds)

    def _output_tokens(self, request: RequestFeatures) -> int:
        return min(request.max_output_tokens, self._weights.longest_output_tokens)

    def _prices_s(
        self,
        request: RequestFeatures,
        candidates: Sequence[ReplicaSnapshot],
        cached_tokens: Mapping[str, int],
        default_speed: StepSpeed,
    ) -> list[float]:
        """Seconds by candidate. This loop is most of a decision's time."""
        weights = self._weights
        prompt_tokens, output_tokens = request.prompt_tokens, self._output_tokens(request)
        decode_tokens = weights.decode_share * output_tokens
        # Exact, so that the order of the replicas does not matter.
        mean_tokens = fsum([r.recent_tokens for r in candidates]) / len(candidates)
        prices_s = []
        for replica in candidates:
            speed = replica.speed or default_speed
            # The last token is computed even if all of the prompt is cached.
            uncached = max(prompt_tokens - cached_tokens.get(replica.replica_id, 0), 1)
            price_s = (
                ttft_s(replica, speed, uncached, output_tokens)
                + weights.prefill_work * uncached * speed.prefill_token_s
                + decode_tokens * (replica.running * speed.sequence_s + replica.kv_tokens_used * speed.context_token_s)
            )
            if replica.recent_tokens > mean_tokens:
                price_s += weights.imbalance * (replica.recent_tokens - mean_tokens) * speed.prefill_token_s
            if replica.age_s > weights.stale_after_s:
                price_s += replica.age_s - weights.stale_after_s
            prices_s.append(price_s)
        return prices_s

    def _cheapest(
        self,
        request: RequestFeatures,
        candidates: Sequence[ReplicaSnapshot],
        prices_s: Sequence[float],
        speed: StepSpeed,
        is_sticky: bool,
    ) -> ReplicaSnapshot:
        """Of those that cost about the least, the one that got and has least to do; then the session's own.

        Without an index a session stays at its own, by rendezvous hashing, until that costs more than computing the
        whole prompt elsewhere.
        """
        weights = self._weights
        is_sticky = is_sticky and request.affinity_key != ""
        prompt_s = request.prompt_tokens * speed.prefill_token_s * (1.0 + weights.prefill_work)
        margin_s = prompt_s if is_sticky else weights.tie_share * prompt_s
        limit_s = min(prices_s) + max(margin_s, weights.tie_s)
        near = [(_burden(r, price), r) for r, price in zip(candidates, prices_s, strict=True) if price <= limit_s]
        if not is_sticky:
            least = min(burden for burden, _ in near)
            near = [(burden, r) for burden, r in near if burden == least]
        if len(near) == 1:
            return near[0][1]
        key = request.affinity_key or str(request.block_hashes[-1:])
        return max((r for _, r in near), key=lambda r: _rendezvous(key, r.replica_id))


def _burden(replica: ReplicaSnapshot, price_s: float) -> tuple[float, ...]:
    return replica.recent_tokens, load_tokens(replica), price_s, replica.waiting, replica.outstanding_tokens


def _rendezvous(key: str, replica_id: str) -> tuple[bytes, str]:
    return blake2b(f"{key}/{replica_id}".encode(), digest_size=8).digest(), replica_id


def _why(cached_tokens: int, most_tokens: int) -> str:
    if most_tokens == 0:
        return "least_loaded"
    return "prefix" if cached_tokens >= most_tokens else "spread"


def _slowness(speed: StepSpeed) -> tuple[float, ...]:
    return speed.prefill_token_s, speed.fixed_s, speed.sequence_s, speed.context_token_s, -speed.max_step_tokens


class LeastTokens:
    """Least loaded by tokens: KV held, prompts that wait, and what this ingress has just sent."""

    def route(
        self,
        request: RequestFeatures,
        replicas: Sequence[ReplicaSnapshot],
        cached_tokens: Mapping[str, int] = NOTHING_CACHED,
    ) -> Route:
        """Ties go to the lowest id, so that equal pictures give equal answers."""
        candidates = ready_replicas(replicas)
        if not candidates:
            return Route(None, why_none(replicas))
        best = min(candidates, key=lambda r: (load_tokens(r), r.replica_id))
        return Route(best.replica_id, "least_tokens")


def load_tokens(replica: ReplicaSnapshot) -> int:
    """Tokens of work ahead of a new request.

    The replica's report lags behind what this ingress sent it, and the ingress does not see what
    others sent: the larger of both views counts.
    """
    return max(replica.kv_tokens_used + replica.waiting_prompt_tokens, replica.outstanding_tokens)


def ready_replicas(replicas: Sequence[ReplicaSnapshot]) -> list[ReplicaSnapshot]:
    """Those that may get a request."""
    return [r for r in replicas if r.ready and not r.draining]


def why_none(replicas: Sequence[ReplicaSnapshot]) -> str:
    """The reason if none of them may."""
    if not replicas:
        return "no replica is known"
    if all(r.draining for r in replicas):
        return "every replica is draining"
    return "no replica is ready"
