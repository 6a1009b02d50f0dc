"""Do all ingresses together keep to one budget, whatever gets lost on the way, and does nothing stay lost?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replica import MODEL, process_metrics, sample

from deployments.leases import RENEW_EVERY_S, Leases
from deployments.ledger import Ledger
from deployments.policies.leases import LEASE_S, WHOLE_ROOM, Ask, Grant, LeaseBook, Renewal, Report, fair_parts
from deployments.policies.quota import WINDOW_S, QuotaLimits, QuotaSnapshot
from deployments.tenancy import Tenancy, Visit
from deployments.tenant import Tenant
from llama31.errors import ConcurrencyLimit, LimitReached, QuotaExceeded, RateLimited

WINDOW = float(WINDOW_S)


def book() -> LeaseBook:
    """One that has heard everybody."""
    return LeaseBook(-LEASE_S)


def test_what_is_not_spent_comes_back() -> None:
    leases = book()
    assert leases.renew(0.0, "a", "x", Ask(100, WINDOW, want=60, need=10)) == Grant(55, 100)
    assert leases.renew(0.1, "b", "x", Ask(100, WINDOW, want=60, need=50)).amount == 45, "half of the rest was leased"
    # a spent 10 and keeps 5.
    assert leases.renew(1.0, "a", "x", Ask(100, WINDOW, kept=5, spent=[(0.5, 10)])).amount == 5
    assert leases.renew(1.1, "b", "x", Ask(100, WINDOW, kept=45, want=100, need=85)).amount == 85


def test_what_is_spent_counts_for_its_window_and_no_longer() -> None:
    leases = book()
    leases.renew(0.0, "a", "x", Ask(10, WINDOW, need=10))
    denied = leases.renew(1.0, "a", "x", Ask(10, WINDOW, need=4, spent=[(0.5, 10)]))
    assert (denied.amount, denied.retry_after_s) == (0, 60.0)
    assert leases.renew(60.9, "a", "x", Ask(10, WINDOW, need=4)).amount == 0
    assert leases.renew(61.0, "a", "x", Ask(10, WINDOW, need=4)).amount == 4


def test_the_lease_of_a_dead_ingress_counts_as_spent_once_and_then_returns() -> None:
    leases = book()
    leases.renew(0.0, "dead", "x", Ask(10, WINDOW, need=10))
    for now_s in (1.0, 10.0, LEASE_S + WINDOW_S):
        assert leases.renew(now_s, "a", "x", Ask(10, WINDOW, need=1)).amount == 0
    assert leases.renew(LEASE_S + WINDOW_S + 1, "a", "x", Ask(10, WINDOW, need=1)).amount >= 1
    # What is only held is free as soon as the lease is over.
    leases.renew(0.0, "dead", "y", Ask(10, need=10))
    assert leases.renew(LEASE_S, "a", "y", Ask(10, need=10)).amount == 10


def test_an_ingress_that_was_away_says_itself_what_it_spent() -> None:
    leases = book()
    leases.renew(0.0, "a", "x", Ask(10, WINDOW, need=10))
    assert leases.renew(8.0, "a", "x", Ask(10, WINDOW, need=7, spent=[(7.0, 3)])).amount == 7


def test_a_new_book_listens_first() -> None:
    leases = LeaseBook(100.0)
    assert leases.renew(101.0, "a", "x", Ask(10, WINDOW, kept=4, need=6, spent=[(5.0, 2)])).amount == 4
    assert leases.renew(100.0 + LEASE_S, "b", "x", Ask(10, WINDOW, need=6)).amount == 4


def test_room_is_shared_out_by_demand() -> None:
    leases = book()
    whole = Ask(WHOLE_ROOM, is_shared_out=True)
    assert leases.renew(0.0, "a", "room", whole) == Grant(WHOLE_ROOM, WHOLE_ROOM)
    # b comes: a is asked to come down, and b gets its part once a has.
    busy = replace(whole, want=WHOLE_ROOM)
    assert leases.renew(0.1, "b", "room", busy) == Grant(0, WHOLE_ROOM)
    answer = leases.renew(0.5, "a", "room", replace(whole, kept=WHOLE_ROOM, want=200_000))
    assert answer == Grant(WHOLE_ROOM, 200_000)
    assert leases.renew(1.0, "a", "room", replace(whole, kept=200_000, want=200_000)).amount == 200_000
    assert leases.renew(1.1, "b", "room", busy).amount == 800_000


@given(budget=st.integers(0, 1000), wants=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 1000), min_size=1))
@settings(max_examples=50, deadline=None)
def test_fair_parts(budget: int, wants: dict[str, int]) -> None:
    parts = fair_parts(budget, wants)
    assert sum(parts.values()) <= budget
    if sum(wants.values()) <= budget:
        assert all(parts[name] >= want for name, want in wants.items())
    equal = budget // len(wants)
    assert all(part >= min(wants[name], equal) for name, part in parts.items())


class Clock:
    """One for everybody in a test."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Fleet:
    """Ingresses around one ledger, in one process, with a clock and a network of the test's own."""

    def __init__(self, ingresses: int, limits: QuotaLimits) -> None:
        self.clock = Clock()
        self.ledger = Ledger(self.clock)
        self.tenant = Tenant("acme", limits=limits)
        # For each answer that is on its way: "ok", "lost request", "lost answer".
        self.fate = "ok"
        self.leases = [self._leases(index, ingresses) for index in range(ingresses)]
        metrics = process_metrics()
        self.desks = [Tenancy(metrics, leases=leases, now_s=self.clock) for leases in self.leases]
        self.queues = [Queue() for _ in self.leases]

    def _leases(self, index: int, ingresses: int) -> Leases:
        async def renew(report: Report) -> Renewal:
            if self.fate == "lost request":
                raise TimeoutError
            renewal = await self.ledger.renew(report)
            if self.fate == "lost answer":
                raise TimeoutError
            return renewal

        return Leases(renew, f"ingress-{index}", MODEL, ingresses, process_metrics(), self.clock)

    async def open(self) -> None:
        """Until the book has heard everybody."""
        for _ in range(int(LEASE_S / RENEW_EVERY_S) + 1):
            await self.renew_all()
            self.clock.now_s += RENEW_EVERY_S
        await self.renew_all()

    async def renew_all(self) -> None:
        for leases, queue in zip(self.leases, self.queues, strict=True):
            await leases.renew_regularly(queue)

    async def enter(self, index: int, tokens: int = 0) -> Visit:
        """As the gateway does. Raises: LimitReached."""
        desk = self.desks[index]
        await desk.prepare(self.tenant, prompts=1)
        visit = desk.enter(self.tenant)
        if tokens:
            try:
                await desk.prepare(self.tenant, tokens=tokens)
                visit.reserve(tokens)
            except LimitReached:
                visit.leave(0)
                raise
        return visit


class Queue:
    """The room's queue of one ingress."""

    def __init__(self) -> None:
        self.wanted = (0.0, 0.0)
        self.charges: dict[str, float] = {}
        self.others: dict[str, float] = {}

    def demand(self) -> tuple[float, float]:
        return self.wanted

    def take_charges(self) -> dict[str, float]:
        charges, self.charges = self.charges, {}
        return charges

    def add_others(self, charges: dict[str, float]) -> None:
        self.others |= charges

    def look_again(self) -> None:
        """Nobody waits."""


async def count(enter: Callable[[int], object], ingresses: int, tries: int) -> int:
    """How many of so many tries in turn were let in."""
    entered = 0
    for attempt in range(tries):
        with suppress(LimitReached):
            await enter(attempt % ingresses)  # type: ignore[misc]
            entered += 1
    return entered


@pytest.mark.parametrize("limits", [QuotaLimits(requests_per_minute=7), QuotaLimits(concurrent_requests=7)])
async def test_a_limit_holds_over_all_ingresses(limits: QuotaLimits) -> None:
    fleet = Fleet(3, limits)
    await fleet.open()
    assert await count(fleet.enter, 3, 30) <= 7
    fleet.clock.now_s += RENEW_EVERY_S
    await fleet.renew_all()
    await fleet.renew_all()
    # All through one connection: what the others did not use is there.
    other = Fleet(3, limits)
    await other.open()
    assert await count(lambda _: other.enter(1), 3, 30) == 7


async def test_tokens_that_were_not_used_come_back_to_everybody() -> None:
    fleet = Fleet(2, QuotaLimits(tokens_per_minute=1000))
    await fleet.open()
    visit = await fleet.enter(0, 1000)
    with pytest.raises(QuotaExceeded):
        await fleet.enter(1, 500)
    visit.leave(100)
    for _ in range(2):
        fleet.clock.now_s += RENEW_EVERY_S
        await fleet.renew_all()
    (await fleet.enter(1, 900)).leave(900)
    with pytest.raises(QuotaExceeded):
        await fleet.enter(0, 1)


async def test_requests_are_told_when_to_come_back() -> None:
    fleet = Fleet(2, QuotaLimits(requests_per_minute=1))
    await fleet.open()
    await fleet.enter(0)
    fleet.clock.now_s += 10
    await fleet.renew_all()
    with pytest.raises(RateLimited) as refused:
        await fleet.enter(1)
    assert 49 <= refused.value.retry_after_s <= 52


async def test_a_place_is_free_again_for_another_ingress() -> None:
    fleet = Fleet(2, QuotaLimits(concurrent_requests=1))
    await fleet.open()
    visit = await fleet.enter(0)
    with pytest.raises(ConcurrencyLimit):
        await fleet.enter(1)
    visit.leave(0)
    fleet.clock.now_s += RENEW_EVERY_S
    await fleet.renew_all()
    fleet.clock.now_s += RENEW_EVERY_S
    await fleet.renew_all()
    await fleet.enter(1)


async def test_without_the_ledger_what_is_held_and_then_a_fixed_share() -> None:
    fleet = Fleet(2, QuotaLimits(requests_per_minute=20))
    await fleet.open()
    for _ in range(4):
        await fleet.enter(0)
    fleet.fate = "lost request"
    held = await count(lambda _: fleet.enter(0), 2, 20)
    assert 1 <= held < 16
    fleet.clock.now_s += LEASE_S
    # Ten of twenty are this ingress's share, and it has had some of them.
    assert await count(lambda _: fleet.enter(0), 2, 20) == max(0, 10 - 4 - held)
    assert await count(lambda _: fleet.enter(1), 2, 20) == 10
    assert [leases.share() for leases in fleet.leases] == [0.5, 0.5]
    await fleet.renew_all()
    assert sample("llama31_ledger_answers", model=MODEL) == 0


async def test_requests_do_not_queue_up_behind_a_silent_ledger() -> None:
    asked = []

    async def never(report: Report) -> Renewal:
        asked.append(report)
        await asyncio.Event().wait()
        raise AssertionError

    leases = Leases(never, "a", MODEL, 1, process_metrics())
    tenant = Tenant(name="t", limits=QuotaLimits(requests_per_minute=1000))
    account = QuotaSnapshot(now_s=0.0, charges=(), running=0)
    await asyncio.gather(*(leases.prepare(tenant, lambda: account, prompts=1) for _ in range(20)))
    assert len(asked) == 1, "the others have seen that it is away"


async def test_a_new_ledger_is_told_everything() -> None:
    fleet = Fleet(2, QuotaLimits(requests_per_minute=10))
    await fleet.open()
    entered = await count(fleet.enter, 2, 10)
    fleet.ledger = Ledger(fleet.clock)
    await fleet.open()
    entered += await count(fleet.enter, 2, 20)
    assert entered == 10
    fleet.clock.now_s += 61
    await fleet.renew_all()
    assert await count(fleet.enter, 2, 20) >= 9


async def test_room_and_fair_shares_of_all_ingresses() -> None:
    fleet = Fleet(2, QuotaLimits())
    await fleet.open()
    assert [leases.share() for leases in fleet.leases] == [0.5, 0.5]
    fleet.queues[0].wanted = (0.4, 1.0)
    for _ in range(4):
        for queue, charge in zip(fleet.queues, (10.0, 1.0), strict=True):
            queue.charges = {"acme": charge}
        await fleet.renew_all()
        fleet.clock.now_s += RENEW_EVERY_S
    shares = [leases.share() for leases in fleet.leases]
    assert shares[0] == pytest.approx(1.0, abs=0.01)
    assert sum(shares) <= 1.0
    # What the other gave since the last renewal.
    assert [queue.others["acme"] for queue in fleet.queues] == [1.0, 10.0]


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["enter", "enter", "enter", "leave", "renew", "renew"]),
        st.sampled_from(["ok", "ok", "ok", "lost request", "lost answer"]),
        st.integers(1, 40),
        st.floats(0, 2, allow_nan=False),
    ),
    max_size=120,
)


@given(steps=STEPS, requests=st.integers(1, 12), tokens=st.integers(40, 200), concurrent=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_no_window_holds_more_than_the_budget_whatever_gets_lost(
    steps: list[tuple[int, str, str, int, float]], requests: int, tokens: int, concurrent: int
) -> None:
    """While leases last: what is handed out without one, by fixed shares, has a bound of its own.

    Requests that run at an ingress which did not renew in time no longer count as concurrent: it may be dead.
    """
    asyncio.run(_play(steps, QuotaLimits(requests, tokens, concurrent)))


async def _play(steps: list[tuple[int, str, str, int, float]], limits: QuotaLimits) -> None:
    fleet = Fleet(3, limits)
    await fleet.open()
    for index in range(3):
        # A lease for everybody, so that nobody falls back on a fixed share.
        await fleet.desks[index].prepare(fleet.tenant, prompts=1)
    used: list[tuple[float, int]] = []
    running: list[tuple[Visit, int, int, int]] = []
    has_lapsed = False
    for index, action, fate, amount, wait_s in steps:
        fleet.clock.now_s += wait_s
        has_lapsed |= not all(fleet.leases[at].holds(fleet.tenant) for *_, at in running)
        fleet.fate = fate
        if action == "renew":
            await fleet.leases[index].renew_regularly(fleet.queues[index])
        elif action == "leave" and running:
            visit, place, reserved, _ = running.pop(0)
            used[place] = (used[place][0], min(amount, reserved))
            visit.leave(used[place][1])
        elif action == "enter" and fleet.leases[index].holds(fleet.tenant):
            with suppress(LimitReached):
                visit = await fleet.enter(index, amount)
                used.append((fleet.clock.now_s, amount))
                running.append((visit, len(used) - 1, amount, index))
        assert has_lapsed or len(running) <= (limits.concurrent_requests or 0)
    for start_s, _ in used:
        minute = [amount for at_s, amount in used if start_s <= at_s <= start_s + WINDOW_S]
        assert len(minute) <= (limits.requests_per_minute or 0)
        assert sum(minute) <= (limits.tokens_per_minute or 0)
