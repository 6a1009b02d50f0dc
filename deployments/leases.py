"""What may this ingress hand out by itself? Its end of the ledger: leases renewed in the background.

As long as a lease lasts, nobody waits for the ledger; only a request for which the lease is too small does, once. While
the ledger is away each ingress spends what it holds, and then a fixed share: one part of as many as there are.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from deployments.metrics import Metrics
from deployments.policies.leases import LEASE_S, WHOLE_ROOM, Ask, Grant, Renewal, Report
from deployments.policies.quota import WINDOW_S, Limit, QuotaLimits, QuotaSnapshot
from deployments.tenant import Tenant

_LOG = logging.getLogger("llama31.leases")

RENEW_EVERY_S = 0.5
# How long a request waits for the ledger's answer, and for how long it is then not asked again.
ANSWER_S = 0.25
AWAY_S = 0.5
# With what a request needs, so many more of its size are asked for.
NEEDS_AHEAD = 4
_LIMITS: tuple[Limit, ...] = ("requests", "tokens", "concurrency")

# The ledger actor's `renew`, or a test's own.
Renew = Callable[[Report], Awaitable[Renewal]]


class Waiting(Protocol):
    """The queue whose room is leased: `deployments.admission.Admission`."""

    def demand(self) -> tuple[float, float]:
        """Shares of the fleet's room: in use, and wanted."""

    def take_charges(self) -> dict[str, float]:
        """Weighted work given to tenants since the last call."""

    def add_others(self, charges: Mapping[str, float]) -> None:
        """Weighted work that other ingresses gave."""

    def look_again(self) -> None:
        """Room may have come."""


@dataclass(slots=True)
class _Holding:
    """One budget of one tenant: what is left of the lease, and what was spent since the last report."""

    left: int = 0
    need: int = 0
    recent: int = 0
    unreported: list[tuple[int, int]] = field(default_factory=list)
    on_its_way: list[tuple[int, int]] = field(default_factory=list)
    retry_s: float = 1.0


@dataclass(slots=True)
class _TenantLeases:
    """All budgets of one tenant. Of its concurrency, `left` is the whole lease."""

    tenant: Tenant
    account: Callable[[], QuotaSnapshot]
    expires_s: float = -math.inf
    # The ledger had no more: it is not asked again before its next regular answer.
    denied_until_s: float = -math.inf
    holdings: dict[Limit, _Holding] = field(default_factory=lambda: {limit: _Holding() for limit in _LIMITS})

    def is_active(self) -> bool:
        spent = any(holding.unreported or holding.left for holding in self.holdings.values())
        return spent or self.account().running > 0


class Leases:
    """Everything that one ingress holds of the ledger."""

    def __init__(
        self,
        renew: Renew,
        ingress_id: str,
        model: str,
        ingresses: int,
        metrics: Metrics,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ingresses` is how many there should be; the ledger says how many there are."""
        self._ledger = renew
        self._ingress_id = ingress_id
        self._room_name = f"room/{model}"
        self._model = model
        self._configured = self._ingresses = ingresses
        self._metrics = metrics
        self._now_s = now_s
        self._tenants: dict[str, _TenantLeases] = {}
        self._room = Grant(0, 0)
        self._room_until_s = -math.inf
        self._queue: Waiting | None = None
        self._book_id = ""
        self._totals: dict[str, float] = {}
        self._asking = asyncio.Lock()
        self._away_until_s = -math.inf

    def share(self) -> float:
        """Of the fleet's room."""
        if self._now_s() < self._room_until_s:
            return self._room.amount / WHOLE_ROOM
        return 1 / self._ingresses

    def limits(self, tenant: Tenant, account: QuotaSnapshot) -> QuotaLimits:
        """What the tenant may have here, in the words of its limits."""
        limits, leases = tenant.limits, self._tenants.get(tenant.name)
        if leases is None or account.now_s >= leases.expires_s:
            return QuotaLimits(*(self._fixed(most) for most in _of(limits)))
        spent = {
            "requests": sum(charges.requests for charges in account.charges),
            "tokens": sum(charges.tokens for charges in account.charges),
            "concurrency": 0,
        }
        here = {limit: spent[limit] + leases.holdings[limit].left for limit in _LIMITS}
        return QuotaLimits(*(None if most is None else here[limit] for limit, most in _named(limits)))

    def retry_s(self, tenant: Tenant, limit: Limit) -> float:
        """When the ledger may have more."""
        leases = self._tenants.get(tenant.name)
        return leases.holdings[limit].retry_s if leases is not None else 1.0

    def spend(self, tenant: Tenant, second: int, requests: int, tokens: int) -> None:
        """Handed out, or taken back if negative, in this second."""
        leases = self._tenants.get(tenant.name)
        if leases is None:
            return
        for holding, amount in ((leases.holdings["requests"], requests), (leases.holdings["tokens"], tokens)):
            if amount:
                holding.unreported.append((second, amount))
            if amount > 0:
                holding.left = max(0, holding.left - amount)
                holding.recent += amount
        leases.holdings["concurrency"].recent += max(0, requests)

    async def prepare(
        self, tenant: Tenant, account: Callable[[], QuotaSnapshot], prompts: int = 0, tokens: int = 0
    ) -> None:
        """Asks for more if what is held is too little for so much; never fails."""
        if not (prompts or tokens) or all(most is None for most in _of(tenant.limits)):
            return
        leases = self._tenants.get(tenant.name)
        if leases is None:
            leases = self._tenants[tenant.name] = _TenantLeases(tenant, account)
        leases.tenant, leases.account = tenant, account
        needs: dict[Limit, int] = {"requests": prompts, "tokens": tokens}
        if prompts:
            needs["concurrency"] = account().running + prompts
        if self._covers(leases, needs) or self._now_s() < max(self._away_until_s, leases.denied_until_s):
            return
        for limit, need in needs.items():
            leases.holdings[limit].need = max(leases.holdings[limit].need, need)
        async with self._asking:
            # Somebody else may have asked meanwhile, or the tenant was dropped as idle.
            self._tenants.setdefault(tenant.name, leases)
            if self._now_s() < max(self._away_until_s, leases.denied_until_s):
                return
            if not self._covers(leases, needs):
                await self._renew((tenant.name,))
            if not self._covers(leases, needs):
                leases.denied_until_s = self._now_s() + RENEW_EVERY_S

    async def run(self, queue: Waiting) -> None:
        """Renews until it is cancelled."""
        while True:
            await self.renew_regularly(queue)
            await asyncio.sleep(RENEW_EVERY_S)

    async def renew_regularly(self, queue: Waiting) -> None:
        """The room, and the budgets of those tenants that have something here."""
        self._queue = queue
        async with self._asking:
            active = [name for name, leases in self._tenants.items() if leases.is_active()]
            self._tenants = {name: self._tenants[name] for name in active}
            await self._renew(active, with_room=True)
        self._metrics.set("llama31_room_share", self.share(), model=self._model)
        self._metrics.set("llama31_ledger_answers", self._now_s() >= self._away_until_s, model=self._model)
        queue.look_again()

    def holds(self, tenant: Tenant) -> bool:
        """Whether it has a lease of the tenant's budgets that lasts."""
        leases = self._tenants.get(tenant.name)
        return leases is not None and self._now_s() < leases.expires_s

    def _covers(self, leases: _TenantLeases, needs: Mapping[Limit, int]) -> bool:
        if self._now_s() >= leases.expires_s:
            return False
        limited = [limit for limit, most in _named(leases.tenant.limits) if most is not None]
        return all(leases.holdings[limit].left >= need for limit, need in needs.items() if limit in limited)

    def _fixed(self, most: int | None) -> int | None:
        """At least one, where the tenant has anything at all."""
        return None if most is None else min(most, max(1, most // self._ingresses))

    async def _renew(self, tenants: Collection[str], with_room: bool = False) -> None:
        asked_s = self._now_s()
        asks: dict[str, Ask] = {}
        for name in tenants:
            asks |= self._tenant_asks(self._tenants[name], asked_s)
        charges: dict[str, float] = {}
        if with_room and self._queue is not None:
            asks[self._room_name] = self._room_ask(asked_s)
            charges = self._queue.take_charges()
        try:
            async with asyncio.timeout(ANSWER_S):
                renewal = await self._ledger(Report(self._ingress_id, asks, charges))
        except Exception as error:  # whatever keeps it from answering
            _LOG.warning("the ledger does not answer: %s", type(error).__name__)
            self._away_until_s = self._now_s() + AWAY_S
            self._put_back(tenants)
            return
        self._take(renewal, tenants, asked_s, with_room)
        self._add_totals(renewal.totals, charges)

    def _tenant_asks(self, leases: _TenantLeases, now_s: float) -> dict[str, Ask]:
        if now_s >= leases.expires_s:
            for holding in leases.holdings.values():
                holding.left = 0
        running = leases.account().running
        asks = {}
        for limit, budget in _named(leases.tenant.limits):
            holding = leases.holdings[limit]
            if budget is None:
                continue
            is_held = limit == "concurrency"
            base = running if is_held else 0
            ahead = min(holding.recent, 1 + running // 4) if is_held else 2 * holding.recent
            holding.left = min(holding.left, base + ahead)
            asks[_name(leases.tenant.name, limit)] = Ask(
                budget=budget,
                window_s=0.0 if is_held else WINDOW_S,
                kept=max(holding.left, base),
                want=max(holding.need, base) + ahead + (0 if is_held else NEEDS_AHEAD * holding.need),
                need=holding.need,
                spent=[(max(0.0, now_s - second - 1), amount) for second, amount in holding.unreported],
            )
            holding.on_its_way, holding.unreported = holding.unreported, []
            holding.need = holding.recent = 0
        return asks

    def _room_ask(self, now_s: float) -> Ask:
        assert self._queue is not None
        used, wanted = (math.ceil(part * WHOLE_ROOM) for part in self._queue.demand())
        held = self._room.amount if now_s < self._room_until_s else 0
        kept = min(held, max(used, self._room.fair))
        self._room = Grant(kept, self._room.fair)
        return Ask(WHOLE_ROOM, kept=kept, want=max(used, min(wanted, WHOLE_ROOM)), need=0, is_shared_out=True)

    def _put_back(self, tenants: Collection[str]) -> None:
        """Reports again what was spent, but not what was taken back: if only the answer was lost, both count twice."""
        for name in tenants:
            for holding in self._tenants[name].holdings.values():
                holding.unreported[:0] = [entry for entry in holding.on_its_way if entry[1] > 0]
                holding.on_its_way = []

    def _take(self, renewal: Renewal, tenants: Collection[str], asked_s: float, with_room: bool) -> None:
        self._ingresses = max(self._configured, renewal.ingresses)
        if renewal.book_id != self._book_id:
            self._book_id = renewal.book_id
            self._tell_everything()
        if not renewal.is_open:
            return
        for name in tenants:
            leases = self._tenants[name]
            leases.expires_s = asked_s + LEASE_S
            for limit, holding in leases.holdings.items():
                grant = renewal.grants.get(_name(name, limit))
                if grant is not None:
                    # What was handed out while the answer was on its way comes from the new lease.
                    handed_out = 0 if limit == "concurrency" else holding.recent
                    holding.left = max(0, grant.amount - handed_out)
                    holding.retry_s = max(RENEW_EVERY_S, grant.retry_after_s)
        if with_room:
            self._room = renewal.grants[self._room_name]
            self._room_until_s = asked_s + LEASE_S

    def _tell_everything(self) -> None:
        """A new book does not know what was spent within the last minute."""
        self._totals = {}
        for leases in self._tenants.values():
            charges = leases.account().charges
            leases.holdings["requests"].unreported = [(c.second, c.requests) for c in charges if c.requests]
            leases.holdings["tokens"].unreported = [(c.second, c.tokens) for c in charges if c.tokens]

    def _add_totals(self, totals: Mapping[str, float], own: Mapping[str, float]) -> None:
        others = {}
        for tenant, total in totals.items():
            if tenant in self._totals:
                others[tenant] = max(0.0, total - self._totals[tenant] - own[tenant])
            self._totals[tenant] = total
        if self._queue is not None:
            self._queue.add_others(others)


def _named(limits: QuotaLimits) -> tuple[tuple[Limit, int | None], ...]:
    return tuple(zip(_LIMITS, _of(limits), strict=True))


def _of(limits: QuotaLimits) -> tuple[int | None, int | None, int | None]:
    return limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent_requests


def _name(tenant: str, limit: Limit) -> str:
    return f"{limit}/{tenant}"
