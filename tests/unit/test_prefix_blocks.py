"""Do ingress and replica name the same prefix blocks, and does the table follow an engine's events?"""

from __future__ import annotations

import struct
from collections import Counter
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31.block_table import BlockTable
from llama31.prefix_blocks import ROUTING_BLOCK_TOKENS, BlockChanges, block_hashes

# One engine block of two tokens, two of which are a routing block.
SMALL, LARGE = 2, 4


def test_names_are_those_of_the_protocol() -> None:
    """As worker_service.proto says: anybody can compute them."""
    parent, expected = blake2b(b"salt", digest_size=8).digest(), []
    for block in ((1, 2), (3, 128_255)):
        parent = blake2b(parent + struct.pack("<2I", *block), digest_size=8).digest()
        expected.append(struct.unpack("<Q", parent)[0])
    assert block_hashes((1, 2, 3, 128_255, 5), "salt", 2) == tuple(expected)
    assert expected == [9184387317804251829, 3346423645971833948], "frozen: replicas of two versions must agree"


@pytest.mark.parametrize("tokens", [0, 1, ROUTING_BLOCK_TOKENS - 1])
def test_less_than_a_block_has_no_name(tokens: int) -> None:
    assert block_hashes(range(tokens), "salt") == ()


IDS = st.lists(st.integers(0, 128_255), max_size=24)


@settings(max_examples=50, deadline=None)
@given(IDS, IDS, st.text(max_size=3), st.text(max_size=3))
def test_equal_names_mean_equal_beginnings(left: list[int], right: list[int], salt: str, other: str) -> None:
    names, others = block_hashes(left, salt, LARGE), block_hashes(right, other, LARGE)
    assert len(names) == len(left) // LARGE
    for index, (name, another) in enumerate(zip(names, others, strict=False), 1):
        assert (name == another) == (left[: index * LARGE] == right[: index * LARGE] and salt == other)


class Cache:
    """An engine's cache of few blocks, and what it would say. Blocks are their own prefixes."""

    def __init__(self) -> None:
        self.table = BlockTable(SMALL, LARGE)
        self.copies: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self.told: set[int] = set()

    def store(self, ids: tuple[int, ...], salt: str) -> None:
        """As an engine does with a sequence: what it finds is left alone, what follows is stored."""
        keys = [(salt, ids[: end + SMALL]) for end in range(0, len(ids) // SMALL * SMALL, SMALL)]
        found = next((i for i, key in enumerate(keys) if not self.copies[key]), len(keys))
        new = keys[found:]
        parent = keys[found - 1] if found else None
        self.copies.update(new)
        self.table.store(new, parent, ids[found * SMALL : len(keys) * SMALL], salt)

    def remove(self, index: int) -> None:
        """Any block, also one in the middle of a chain."""
        there = sorted(self.copies.elements())
        if there:
            key = there[index % len(there)]
            self.copies[key] -= 1
            self.table.remove([key])

    def expected(self) -> set[int]:
        """Names of routing blocks whose engine blocks are all there."""
        names = set()
        for salt, ids in +self.copies:
            halves = [(salt, ids[:-SMALL]), (salt, ids)]
            if len(ids) % LARGE == 0 and all(self.copies[half] for half in halves):
                names.add(block_hashes(ids, salt, LARGE)[-1])
        return names

    def listen(self) -> None:
        """As an ingress: applies the changes."""
        changes = self.table.take_changes()
        assert not set(changes.stored) & self.told
        assert set(changes.dropped) <= self.told
        self.told = (self.told | set(changes.stored)) - set(changes.dropped)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.lists(st.integers(1, 2), max_size=12).map(tuple), st.sampled_from(["", "b"])),
        st.integers(0, 50),
        st.none(),
    ),
    max_size=30,
)


@settings(max_examples=50, deadline=None)
@given(ACTIONS)
def test_table_holds_what_the_engine_holds(actions: list[object]) -> None:
    cache = Cache()
    for action in actions:
        match action:
            case int():
                cache.remove(action)
            case (tuple() as ids, str() as salt):
                cache.store(ids, salt)
            case None:
                cache.listen()
        assert set(cache.table.names()) == cache.expected()
    cache.listen()
    assert cache.told == cache.expected()
    while +cache.copies:
        cache.remove(0)
    cache.listen()
    assert cache.told == set()
    left = (cache.table._engine, cache.table._routing, cache.table._parts)
    assert left == ({}, {}, {}), "nothing is kept of what is gone"


def test_copies_are_counted() -> None:
    """Two sequences that compute one prompt at once store it twice."""
    table = BlockTable(SMALL, LARGE)
    for _ in range(2):
        table.store(["a", "b"], None, (1, 2, 3, 4), "")
    table.remove(["a", "b"])
    assert table.names() == block_hashes((1, 2, 3, 4), "", LARGE)
    table.remove(["b", "a"])
    assert (table.names(), table.take_changes()) == ((), BlockChanges())


def test_what_follows_an_unknown_block_is_left_out() -> None:
    table = BlockTable(SMALL, LARGE)
    table.store(["c", "d"], "lost", (1, 2, 3, 4), "")
    table.store(["a"], None, (1, 2, 3), "")
    table.remove(["never seen"])
    assert (len(table), table.take_changes()) == (0, BlockChanges())


def test_clearing_drops_all() -> None:
    table = BlockTable(SMALL, LARGE)
    table.store(["a", "b"], None, (1, 2, 3, 4), "")
    (name,) = table.take_changes().stored
    assert table.cached_tokens((1, 2, 3, 4, 5), "") == LARGE
    assert table.cached_tokens((1, 2, 3, 4, 5), "another tenant") == 0
    table.clear()
    assert table.take_changes() == BlockChanges(dropped=(name,))
    assert table.cached_tokens((1, 2, 3, 4, 5), "") == 0


def test_blocks_must_fit() -> None:
    with pytest.raises(ValueError, match="128 tokens are not whole blocks of 48"):
        BlockTable(48)
