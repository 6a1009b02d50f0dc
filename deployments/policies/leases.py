"""Who may hand out how much of one budget? The arithmetic of leases; nothing in here has a clock.

Some amount of a budget (sequences, tokens, a share of the room) is leased to each ingress for a short time. What an
ingress spends, it reports and it counts for the budget's window; what it does not, comes back: when it says so, or when
its lease expires. So all of them together never hand out more than the budget in any window, as long as each

- gives up what it returns *before* it says so, and uses a lease from the time at which it asked,
- says of what it spent that it is younger than it is, never older, and reports no later than `RETURN_MARGIN_S` what it
  takes back of that.

The lease of an ingress that dies counts as spent when it expires, and returns when its window has passed. A book that
was opened anew hears everyone for the length of a lease before it gives anything out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# How long a lease lasts, and how old a report may be when it arrives.
LEASE_S = 3.0
RETURN_MARGIN_S = 1.0
# The room of a model's replicas is leased in millionths.
WHOLE_ROOM = 1_000_000


@dataclass(frozen=True, slots=True)
class Ask:
    """One ingress renews its lease of one budget.

    It keeps `kept` whatever the answer is, would like to hold `want`, and somebody waits for `need` (in all). `spent`
    are (age, amount): what was handed out, or taken back if negative, since the last report. With a window of 0 a lease
    is only held, as for concurrency. Of a budget that is shared out, everybody holds a part also of what nobody wants.
    """

    budget: int
    window_s: float = 0.0
    kept: int = 0
    want: int = 0
    need: int = 0
    spent: Sequence[tuple[float, int]] = ()
    is_shared_out: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """What it holds now. `fair` is its part by everybody's wishes; it may be asked to come down to it."""

    amount: int
    fair: int
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """What an ingress asks for by the names of budgets, and the weighted work it gave tenants since the last report."""

    ingress_id: str
    asks: Mapping[str, Ask]
    charges: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Renewal:
    """The answer. `totals` are the work of all ingresses for the report's tenants since the book was opened.

    A book that is not open yet has taken in what was reported; its grants mean nothing.
    """

    book_id: str
    is_open: bool
    ingresses: int
    grants: Mapping[str, Grant]
    totals: Mapping[str, float]


@dataclass(slots=True)
class _Lease:
    amount: int
    want: int
    expires_s: float


@dataclass(slots=True)
class _Pot:
    """One budget: what is leased, and what was spent in each second of the window."""

    window_s: float = 0.0
    leases: dict[str, _Lease] = field(default_factory=dict)
    spent: dict[int, int] = field(default_factory=dict)
    # Of ingresses that did not renew in time: the second in which they may have spent what they held.
    presumed: dict[str, tuple[int, int]] = field(default_factory=dict)

    def expire(self, now_s: float) -> None:
        for ingress in [name for name, lease in self.leases.items() if lease.expires_s <= now_s]:
            lease = self.leases.pop(ingress)
            if self.window_s and lease.amount:
                second, before = self.presumed.get(ingress, (0, 0))
                self.presumed[ingress] = max(second, math.floor(lease.expires_s)), before + lease.amount
        # As for `policies.quota`: a charge counts for its own second and the window after it.
        self.spent = {second: amount for second, amount in self.spent.items() if self._counts(second, now_s)}
        self.presumed = {name: entry for name, entry in self.presumed.items() if self._counts(entry[0], now_s)}

    def count(self, now_s: float, spent: Sequence[tuple[float, int]]) -> None:
        for age_s, amount in spent:
            second = math.floor(now_s - age_s - (RETURN_MARGIN_S if amount < 0 else 0.0))
            if self._counts(second, now_s):
                self.spent[second] = self.spent.get(second, 0) + amount

    def used(self) -> int:
        return max(0, sum(self.spent.values())) + sum(amount for _, amount in self.presumed.values())

    def freed_in_s(self, now_s: float, amount: int) -> float:
        """When so much of what was spent no longer counts."""
        freed = 0
        for second, spent in sorted([*self.spent.items(), *self.presumed.values()]):
            freed += spent
            if freed >= amount:
                return second + 1 + self.window_s - now_s
        return math.inf

    def _counts(self, second: int, now_s: float) -> bool:
        return now_s < second + 1 + self.window_s


class LeaseBook:
    """All budgets, by any name; ingresses are named by themselves."""

    def __init__(self, opened_s: float, lease_s: float = LEASE_S) -> None:
        self._lease_s = lease_s
        self._gives_from_s = opened_s + lease_s
        self._pots: dict[str, _Pot] = {}

    def renew(self, now_s: float, ingress: str, name: str, ask: Ask) -> Grant:
        """Takes the report and the rest of the old lease; gives a new one."""
        pot = self._pots.setdefault(name, _Pot())
        pot.window_s = ask.window_s
        pot.expire(now_s)
        pot.leases.pop(ingress, None)
        # It is alive, and says itself what it spent.
        pot.presumed.pop(ingress, None)
        pot.count(now_s, ask.spent)
        others = {name: lease.want for name, lease in pot.leases.items()}
        free = ask.budget - pot.used() - sum(lease.amount for lease in pot.leases.values())
        fair = fair_parts(ask.budget, others | {ingress: ask.want})[ingress]
        amount = ask.kept
        if self.is_open(now_s) and free > amount:
            # Of what is left beyond the need, half stays for whoever asks next.
            ahead = ask.need + max(0, free - ask.need) // 2
            wished = fair if ask.is_shared_out else max(ask.need, min(ask.want, ahead))
            amount = max(amount, min(free, wished))
        pot.leases[ingress] = _Lease(amount, ask.want, now_s + self._lease_s)
        if amount >= ask.need:
            return Grant(amount, fair)
        lacking = ask.need - max(amount, free)
        retry_s = pot.freed_in_s(now_s, lacking) if ask.window_s else 1.0
        # What others hold and do not spend comes back with their next renewals.
        return Grant(amount, fair, retry_s if math.isfinite(retry_s) else 1.0)

    def is_open(self, now_s: float) -> bool:
        """Whether everybody has been heard."""
        return now_s >= self._gives_from_s

    def forget(self, now_s: float) -> None:
        """Drops budgets of which nothing is left."""
        for name, pot in list(self._pots.items()):
            pot.expire(now_s)
            if not (pot.leases or pot.spent or pot.presumed):
                del self._pots[name]


def fair_parts(budget: int, wants: Mapping[str, int]) -> dict[str, int]:
    """Everybody what they want, as far as equal parts go; what nobody wants is shared equally, too."""
    parts: dict[str, int] = {}
    left, rest = budget, sorted(wants, key=lambda name: (wants[name], name))
    while rest:
        name = rest.pop(0)
        parts[name] = min(wants[name], left // (len(rest) + 1))
        left -= parts[name]
    bonus = left // len(wants)
    return {name: part + bonus for name, part in parts.items()}
