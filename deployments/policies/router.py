"""Which replica gets a request? The one that is predicted to answer first, at the least cost to the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from cluster.policy import NOTHING_CACHED, ReplicaSnapshot, RequestFeatures, Route, StepSpeed
from deployments.policies.ttft import ttft_s

# Stands in where no replica's speed is known yet: only its ratios decide then. 70B bf16 on 4 H100s: an 8k prompt in
# 585 ms, one sequence 14.8 ms a step, and 320 KiB of KV per token at 4 x 3.35 TB/s x 0.8.
TYPICAL_SPEED = StepSpeed(0.0148, 585e-3 / 8192, 30e-6, 30e-9, 8192)


@dataclass(frozen=True, slots=True)
class RouterWeights:
    """What the price of a replica is made of, beside the predicted time to first token; docs/routing.md says why.

    `prefill_work` prices each second of this request's own prefill once more: it keeps the others there waiting.
    `decode_share` is how much of the tokens to come counts, at the pace of the replica's step. A report older than
    `stale_after_s` costs the time beyond. Prices that differ by less than `tie_s` or `tie_share` are equal.
    """

    prefill_work: float = 2.0
    decode_share: float = 0.1
    longest_output_tokens: int = 1024
    stale_after_s: float = 2.0
    tie_s: float = 0.01
    tie_share: float = 0.05


class PredictedTtft:
    """The lowest predicted time to first token, with a price on work that another replica would not have to do.

    Reasons: `prefix` (it has most of the prompt), `spread` (another has more of it, but is too busy), `least_loaded`
    (nobody has any), and degraded: `no_index`, `no_speed`, `stale`.
    """

    def __init__(self, weights: RouterWeights | None = None) -> None:
        self._weights = weights or RouterWeights()

    def route(
        self,
        request: RequestFeatures,
        replicas: Sequence[ReplicaSnapshot],
        cached_tokens: Mapping[str, int] = NOTHING_CACHED,
    ) -> Route:
        """Goes on with whatever is known: no argument makes it refuse a replica that is ready."""
        candidates = [r for r in replicas if r.ready and not r.draining]
        if not candidates:
            return Route(None, _why_none(replicas))
        slowest = max((r.speed for r in candidates if r.speed), key=_token_s, default=None)
        output_tokens = min(request.max_output_tokens, self._weights.longest_output_tokens)
        offers = [
            self._offer(
                replica,
                replica.speed or slowest or TYPICAL_SPEED,
                request.prompt_tokens,
                output_tokens,
                cached_tokens.get(replica.replica_id, 0),
            )
            for replica in candidates
        ]
        has_index = bool(request.block_hashes) and cached_tokens is not NOTHING_CACHED
        chosen = self._choose(offers, request, (slowest or TYPICAL_SPEED).prefill_token_s, has_index)
        reason = self._degraded(chosen, slowest is not None, has_index) or _reason(chosen, offers)
        return Route(chosen.replica.replica_id, reason, chosen.cached_tokens, chosen.ttft_s if slowest else None)

    def _offer(
        self, replica: ReplicaSnapshot, speed: StepSpeed, prompt_tokens: int, output_tokens: int, cached_tokens: int
    ) -> _Offer:
        weights = self._weights
        uncached = max(prompt_tokens - cached_tokens, 1)  # the last token is always computed
        seconds = ttft_s(replica, speed, uncached, output_tokens)
        decode_s = replica.running * speed.sequence_s + replica.kv_tokens_used * speed.context_token_s
        price_s = (
            seconds
            + weights.prefill_work * uncached * speed.prefill_token_s
            + weights.decode_share * output_tokens * decode_s
            + max(replica.age_s - weights.stale_after_s, 0.0)
        )
        return _Offer(price_s, seconds, min(cached_tokens, prompt_tokens), replica)

    def _choose(self, offers: list[_Offer], request: RequestFeatures, token_s: float, has_index: bool) -> _Offer:
        """The least loaded of those that cost about as little as the cheapest.

        Without an index a session stays where it was, by rendezvous hashing, unless the queue there is longer than
        computing the whole prompt elsewhere.
        """
        weights = self._weights
        prompt_s = request.prompt_tokens * token_s * (1.0 + weights.prefill_work)
        sticky = request.affinity_key != "" and not has_index
        tie_s = max(weights.tie_s, prompt_s * (1.0 if sticky else weights.tie_share))
        limit_s = min(offer.price_s for offer in offers) + tie_s
        near = [offer for offer in offers if offer.price_s <= limit_s]
        if not sticky:
            least = min(_load(offer) for offer in near)
            near = [offer for offer in near if _load(offer) == least]
        key = request.affinity_key or str(request.block_hashes[-1:])
        return near[0] if len(near) == 1 else max(near, key=lambda offer: _rendezvous(key, offer.replica.replica_id))

    def _degraded(self, chosen: _Offer, has_speed: bool, has_index: bool) -> str | None:
        if chosen.replica.age_s > self._weights.stale_after_s:
            return "stale"
        if not has_speed:
            return "no_speed"
        return None if has_index else "no_index"


class _Offer(NamedTuple):
    price_s: float
    ttft_s: float
    cached_tokens: int
    replica: ReplicaSnapshot


def _load(offer: _Offer) -> tuple[int, float, int]:
    return load_tokens(offer.replica), offer.price_s, offer.replica.waiting


def _rendezvous(key: str, replica_id: str) -> tuple[bytes, str]:
    return blake2b(f"{key}/{replica_id}".encode(), digest_size=8).digest(), replica_id


def _reason(chosen: _Offer, offers: list[_Offer]) -> str:
    most = max(offer.cached_tokens for offer in offers)
    if most == 0:
        return "least_loaded"
    return "prefix" if chosen.cached_tokens == most else "spread"


def _token_s(speed: StepSpeed) -> tuple[float, ...]:
    return speed.prefill_token_s, speed.fixed_s, speed.sequence_s, speed.context_token_s, speed.max_step_tokens


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
