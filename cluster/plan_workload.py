"""Which requests does a planner reckon with: those of a trace, or such with given lengths and rate?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np

from cluster.workload import Request, at_speed, poisson, read_workload
from llama31.errors import ConfigInvalid

_Z99 = NormalDist().inv_cdf(0.99)
_DRAWS = 500


@dataclass(frozen=True, slots=True)
class LengthSpread:
    """Tokens of a prompt or an answer: log-normal by its median and 99th percentile, or all equal."""

    p50_tokens: int
    p99_tokens: int

    def tokens(self) -> list[int]:
        """Equally likely lengths, ascending, up to the 99.9th percentile."""
        sigma = math.log(self.p99_tokens / self.p50_tokens) / _Z99
        if not sigma:
            return [self.p50_tokens]
        normal = NormalDist()
        shares = ((place + 0.5) / _DRAWS for place in range(_DRAWS))
        return [max(1, round(self.p50_tokens * math.exp(sigma * normal.inv_cdf(share)))) for share in shares]


@dataclass(frozen=True, slots=True)
class PlanWorkload:
    """Lengths that are equally likely, and the rate if one is given; `trace` holds arrivals where there are some."""

    lengths: tuple[tuple[int, int], ...]
    rate_per_s: float | None
    trace: tuple[Request, ...] = ()
    block_tokens: int = 16

    def requests(self, rate_per_s: float, count: int, seed: int = 0) -> Iterator[Request]:
        """So many at that rate: a piece of the trace, faster or slower than it was, or with random arrivals."""
        if not self.trace:
            return poisson(rate_per_s, count, self.lengths, seed)
        piece = _busiest(self.trace, count)
        span_s = piece[-1].arrival_s - piece[0].arrival_s
        own_rate = _rate(self.trace)
        shifted = (replace(request, arrival_s=request.arrival_s - piece[0].arrival_s) for request in piece)
        return at_speed(shifted, rate_per_s / own_rate) if span_s > 0 else shifted


def from_lengths(prompts: LengthSpread, outputs: LengthSpread, rate_per_s: float | None) -> PlanWorkload:
    """Prompt and output lengths are drawn apart from each other."""
    ours, theirs = prompts.tokens(), outputs.tokens()
    if len(ours) == len(theirs) == 1:
        return PlanWorkload(((ours[0], theirs[0]),), rate_per_s)
    order = np.random.default_rng(0).permutation(_DRAWS)
    pairs = tuple((ours[i % len(ours)], theirs[int(order[i]) % len(theirs)]) for i in range(_DRAWS))
    return PlanWorkload(pairs, rate_per_s)


def from_trace(path: Path, rate_per_s: float | None) -> PlanWorkload:
    """At its own mean rate unless another is given. Raises: ConfigInvalid."""
    workload = read_workload(path)
    requests = tuple(workload.requests)
    if len(requests) < 2 or requests[-1].arrival_s <= requests[0].arrival_s:
        raise ConfigInvalid(f"{path}: a trace needs requests at two different times at least")
    lengths = tuple((request.prompt_tokens, request.output_tokens) for request in requests)
    return PlanWorkload(lengths, rate_per_s or _rate(requests), requests, workload.block_tokens)


def _rate(requests: Sequence[Request]) -> float:
    return (len(requests) - 1) / (requests[-1].arrival_s - requests[0].arrival_s)


def _busiest(requests: Sequence[Request], count: int) -> Sequence[Request]:
    """So many consecutive requests within the shortest time."""
    if len(requests) <= count:
        return requests
    spans = [requests[i + count - 1].arrival_s - requests[i].arrival_s for i in range(len(requests) - count + 1)]
    start = min(range(len(spans)), key=spans.__getitem__)
    return requests[start : start + count]
