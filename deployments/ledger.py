"""Which ingress may hand out how much? A small named Ray actor keeps the book of leases, off every token's path.

Ingresses renew every half second. If it dies, Ray restarts it with an empty book: each ingress tells it what it holds
and what it spent within the last minute, and meanwhile goes on with what it holds.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from ray.actor import ActorHandle

from deployments.named_actor import find_actor, open_actor
from deployments.policies.leases import LEASE_S, LeaseBook, Renewal, Report

NAME = "admission-ledger"


class Ledger:
    """The actor's state."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._book_id = secrets.token_hex(8)
        self._book = LeaseBook(now_s())
        self._totals: dict[str, float] = {}
        self._seen_s: dict[str, float] = {}

    async def renew(self, report: Report) -> Renewal:
        """All budgets of one ingress at once."""
        now_s = self._now_s()
        self._seen_s[report.ingress_id] = now_s
        self._seen_s = {name: seen_s for name, seen_s in self._seen_s.items() if seen_s > now_s - LEASE_S}
        for tenant, charge in report.charges.items():
            self._totals[tenant] = self._totals.get(tenant, 0.0) + charge
        book = self._book
        grants = {name: book.renew(now_s, report.ingress_id, name, ask) for name, ask in report.asks.items()}
        book.forget(now_s)
        totals = {tenant: self._totals[tenant] for tenant in report.charges}
        return Renewal(self._book_id, book.is_open(now_s), len(self._seen_s), grants, totals)


def find_ledger() -> ActorHandle[Any] | None:
    """The cluster's ledger if there is one."""
    return find_actor(NAME)


def open_ledger() -> ActorHandle[Any]:
    """The cluster's ledger, made by whoever comes first."""
    return open_actor(NAME, Ledger)
