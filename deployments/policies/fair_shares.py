"""How much work was each tenant given, weighted, and how long will its next answer be? Nothing in here has a clock.

Virtual token counters (VTC, Sheng et al., OSDI 2024): whoever has the lowest counter is next. A tenant that comes
back after a pause is lifted to where the others are, less a credit for bursts: idle time counts for no more than that,
and busy time without anybody waiting is no debt.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

# ServeGen's m-large puts out 67 tokens at the median and 461 at p90: between them until a tenant is known.
FIRST_FORECAST_TOKENS = 256.0
# So much of each new answer goes into the running mean: twenty answers count most.
FORECAST_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class AnswerLengths:
    """What a tenant's answers were like."""

    mean_tokens: float = FIRST_FORECAST_TOKENS

    def forecast(self, limit_tokens: int) -> int:
        """Of the next one; at most the limit."""
        return max(1, min(limit_tokens, math.ceil(self.mean_tokens)))

    def with_answer(self, tokens: float) -> AnswerLengths:
        """Once one has ended."""
        return AnswerLengths(self.mean_tokens + FORECAST_SHARE * (tokens - self.mean_tokens))


class FairShares:
    """Every tenant's virtual counter."""

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        # The counter, before its charge, of whoever entered last; it never falls.
        self._now = 0.0

    @property
    def level(self) -> float:
        """Whoever is below it was given less than the others."""
        return self._now

    def counter(self, tenant: str) -> float:
        """What decisions compare."""
        return self._counters.get(tenant, 0.0)

    def arrive(self, tenant: str, waiting: Collection[str], credit: float = 0.0) -> None:
        """Lifts a tenant that had nothing waiting to the lowest of those that wait, or that entered last.

        It may stay behind by its `credit`, weighted work: so much of a burst goes before those that always wait.
        """
        lowest = min((self.counter(name) for name in waiting), default=self._now)
        self._counters[tenant] = max(self.counter(tenant), min(lowest, self._now) - credit)

    def enter(self, tenant: str, work: float, weight: float) -> None:
        """One of its requests entered, with this much work by the forecast."""
        self._now = max(self._now, self.counter(tenant))
        self._counters[tenant] = self.counter(tenant) + work / weight

    def correct(self, tenant: str, work: float, weight: float) -> None:
        """It turned out to be so much more, or less, than the forecast."""
        self._counters[tenant] = max(0.0, self.counter(tenant) + work / weight)

    def add_others(self, charges: Mapping[str, float]) -> None:
        """Weighted work that other ingresses gave these tenants, of those that this one knows."""
        for tenant, charge in charges.items():
            if tenant in self._counters:
                self._counters[tenant] += charge

    def forget_idle(self, waiting: Collection[str]) -> None:
        """Drops counters that say nothing any more: a tenant that returns would be lifted above them."""
        self._counters = {t: c for t, c in self._counters.items() if c > self._now or t in waiting}
