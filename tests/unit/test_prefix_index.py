"""Does the index say what replicas hold, as a plain model would, within its bound of memory?"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.policies.prefix_index import BYTES_PER_BLOCK, REPORTS_TO_CONFIRM, PrefixIndex

UNBOUNDED = 1_000_000


class Model:
    """The same by its definition: a block is there if it was stored, or if who expected it last is not closed."""

    def __init__(self) -> None:
        self.stored: set[tuple[str, int]] = set()
        self.expected_by: dict[tuple[str, int], int] = {}
        self.tickets: list[tuple[str, list[int]]] = []
        self.closing: dict[int, int] = {}

    def store(self, replica: str, hashes: list[int]) -> None:
        for block in hashes:
            self.stored.add((replica, block))
            self.expected_by.pop((replica, block), None)

    def drop(self, replica: str, hashes: list[int]) -> None:
        for block in hashes:
            self.stored.discard((replica, block))
            self.expected_by.pop((replica, block), None)

    def snapshot(self, replica: str, hashes: list[int]) -> None:
        self.stored = {(r, block) for r, block in self.stored if r != replica}
        self.store(replica, hashes)

    def forget(self, replica: str) -> None:
        self.stored = {pair for pair in self.stored if pair[0] != replica}
        self.expected_by = {pair: ticket for pair, ticket in self.expected_by.items() if pair[0] != replica}
        self.closing = {t: left for t, left in self.closing.items() if self.tickets[t][0] != replica}

    def expect(self, replica: str, hashes: list[int]) -> None:
        for block in hashes:
            if (replica, block) not in self.stored:
                self.expected_by[replica, block] = len(self.tickets)
        self.tickets.append((replica, hashes))

    def settle(self, number: int) -> None:
        if number < len(self.tickets):
            self.closing.setdefault(number, REPORTS_TO_CONFIRM)

    def reported(self, replica: str) -> None:
        for ticket in [t for t in self.closing if self.tickets[t][0] == replica]:
            self.closing[ticket] -= 1
            if self.closing[ticket] == 0:
                self.expected_by = {pair: t for pair, t in self.expected_by.items() if t != ticket}

    def match(self, hashes: list[int]) -> dict[str, int]:
        there = self.stored | set(self.expected_by)
        found = {}
        for replica in "abc":
            count = 0
            while count < len(hashes) and (replica, hashes[count]) in there:
                count += 1
            if count:
                found[replica] = count
        return found


REPLICA = st.sampled_from("abc")
# Chains of two prompts that have their beginning in common, as real ones do; and anything else.
CHAIN = st.one_of(
    st.integers(1, 6).map(lambda n: list(range(n))),
    st.integers(3, 6).map(lambda n: [0, 1, *range(12, 10 + n)]),
    st.lists(st.integers(0, 9), unique=True, max_size=6),
)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["store", "drop", "snapshot", "expect"]), REPLICA, CHAIN),
        st.tuples(st.sampled_from(["forget", "reported"]), REPLICA),
        st.tuples(st.just("settle"), st.integers(0, 8)),
    ),
    max_size=40,
)
Event = tuple[object, ...]


def play(index: PrefixIndex, events: list[Event], after_each: Callable[[Event], None]) -> None:
    tickets: list[int] = []
    for event in events:
        name, *arguments = event
        if name == "settle":
            (number,) = arguments
            if isinstance(number, int) and number < len(tickets):
                index.settle(tickets[number])
        else:
            ticket = getattr(index, str(name))(*arguments)
            if name == "expect":
                tickets.append(ticket)
        after_each(event)


@settings(max_examples=50, deadline=None)
@given(EVENTS, CHAIN)
def test_it_agrees_with_a_plain_model(events: list[Event], asked: list[int]) -> None:
    index, model = PrefixIndex(UNBOUNDED), Model()

    def compare(event: Event) -> None:
        name, *arguments = event
        getattr(model, str(name))(*arguments)
        for hashes in (asked, list(range(6)), [0, 1, 12, 13]):
            assert index.match(hashes) == model.match(hashes)

    play(index, events, compare)


@settings(max_examples=50, deadline=None)
@given(EVENTS, st.integers(1, 8))
def test_no_event_takes_it_beyond_its_bound(events: list[Event], max_blocks: int) -> None:
    index = PrefixIndex(max_blocks)

    def look(_: Event) -> None:
        assert index.blocks == sum(index.replicas.values()) <= max_blocks
        # What it finds is within what it counts.
        assert sum(sum(index.match([block]).values()) for block in range(20)) == index.blocks

    play(index, events, look)


def test_ends_of_prompts_go_before_their_beginnings_and_old_before_new() -> None:
    index = PrefixIndex(6)
    index.store("a", [1, 2, 3])
    index.store("a", [11, 12, 13])
    index.store("a", [21])
    assert (index.match([1, 2, 3]), index.match([11, 12, 13])) == ({"a": 2}, {"a": 3})
    # Being routed to is being used.
    index.settle(index.expect("a", [1, 2]))
    index.store("a", [22, 23])
    assert (index.match([1, 2]), index.match([11, 12, 13])) == ({"a": 2}, {"a": 1})


def test_the_replica_with_the_most_blocks_gives_way() -> None:
    index = PrefixIndex(10)
    index.store("small", [1, 2])
    index.store("large", list(range(100, 120)))
    assert index.replicas == {"small": 2, "large": 8}
    assert index.match(list(range(100, 120))) == {"large": 8}


def test_a_burst_is_expected_until_two_reports_after_its_first_token() -> None:
    index = PrefixIndex(100)
    ticket = index.expect("a", [1, 2, 3])
    for _ in range(5):
        index.reported("a")
    assert index.match([1, 2, 3]) == {"a": 3}
    index.settle(ticket)
    index.store("a", [1])
    for left in ({"a": 3}, {"a": 1}):
        index.reported("a")
        assert index.match([1, 2, 3]) == left


def test_a_later_request_keeps_what_an_earlier_one_brought() -> None:
    index = PrefixIndex(100)
    first, second = index.expect("a", [1, 2]), index.expect("a", [1, 2, 3])
    index.settle(first)
    for _ in range(REPORTS_TO_CONFIRM):
        index.reported("a")
    assert index.match([1, 2, 3]) == {"a": 3}
    index.settle(second)
    for _ in range(REPORTS_TO_CONFIRM):
        index.reported("a")
    assert index.match([1, 2, 3]) == {}


def test_a_replica_of_the_same_name_starts_with_nothing() -> None:
    index = PrefixIndex(100)
    index.store("a", [1, 2])
    ticket = index.expect("a", [3])
    index.forget("a")
    index.store("b", [1])
    index.store("a", [2])
    index.settle(ticket)
    assert (index.match([1, 2]), index.match([2]), index.match([3])) == ({"b": 1}, {"a": 1}, {})
    assert index.blocks == 2


@pytest.mark.parametrize("holders", [1, 8])
def test_what_a_block_costs_in_bytes(holders: int) -> None:
    """With hashes of its own, as from the wire, after as many drops as stores."""
    dice = random.Random(7)
    blocks = 24_000
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        index = PrefixIndex(blocks)
        for _ in range(2 * blocks // 100 // holders):
            hashes = [dice.getrandbits(64) for _ in range(100)]
            for holder in range(holders):
                index.store(f"replica-{holder}", hashes)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert index.blocks > 0.9 * blocks
    assert (after - before) / index.blocks < BYTES_PER_BLOCK
