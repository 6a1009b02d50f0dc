"""Do a replica's counters, the speed of its steps and its blocks arrive as they were, in messages of bounded size?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.policy import StepSpeed
from deployments import block_feed
from deployments.block_feed import MOST_IN_A_MESSAGE, BlockFeed, BlockNews
from deployments.worker_codec import MAX_MESSAGE_BYTES
from deployments.worker_state import decode_blocks, decode_speed, decode_state, encode_state
from llama31.block_table import BlockTable
from llama31.engine import EngineState
from llama31.prefix_blocks import BlockChanges, block_hashes
from llama31.worker.v1 import worker_service_pb2 as pb

COUNTS = st.integers(0, 2**31)
SECONDS = st.floats(0, 1)
SPEEDS = st.builds(StepSpeed, *[SECONDS] * 4, max_step_tokens=COUNTS)
# As they are decoded: what is not told on the wire is zero.
STATES = st.builds(EngineState, *[COUNTS] * 9, prefill_tokens=COUNTS)
TABLE_BLOCK = 4


@settings(max_examples=20, deadline=None)
@given(STATES, st.booleans(), SPEEDS | st.none())
def test_states_arrive_as_they_were(state: EngineState, draining: bool, speed: StepSpeed | None) -> None:
    sent = encode_state(state, 7, not draining, draining, speed, BlockNews(3, True, BlockChanges((1, 2**64 - 1), (5,))))
    message = pb.WatchResponse.FromString(sent.SerializeToString())
    assert (decode_state(message), decode_speed(message)) == (state, speed)
    assert decode_blocks(message) == BlockNews(3, True, BlockChanges((1, 2**64 - 1), (5,)))
    assert (message.sequence, message.ready, message.draining) == (7, not draining, draining)


def test_an_older_replica_tells_no_blocks() -> None:
    assert decode_blocks(pb.WatchResponse(sequence=3)) == BlockNews()


class Listener:
    """An ingress: what it believes after all that it was told."""

    def __init__(self, feed: BlockFeed) -> None:
        self._told: Iterator[Sequence[BlockNews]] = feed.watch()
        self.heard = 0
        self.snapshots = 0
        self.blocks: set[int] = set()

    def listen(self) -> None:
        for news in next(self._told):
            assert encode_state(EngineState(), 1, True, False, None, news).ByteSize() < MAX_MESSAGE_BYTES
            if not news.sequence:
                assert news == BlockNews()
                continue
            self.heard += 1
            assert news.sequence == self.heard
            self.snapshots += news.is_snapshot
            if news.is_snapshot:
                self.blocks = set()
            assert not self.blocks & set(news.changes.stored)
            self.blocks = (self.blocks - set(news.changes.dropped)) | set(news.changes.stored)


def filled(table: BlockTable, topics: range) -> None:
    """One block for each topic; its key is the topic."""
    for topic in topics:
        table.store([topic], None, (topic,) * TABLE_BLOCK, "")


def table_with(topics: range) -> BlockTable:
    table = BlockTable(TABLE_BLOCK, TABLE_BLOCK)
    filled(table, topics)
    return table


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.tuples(st.sampled_from("+-"), st.integers(0, 9)), st.sampled_from("ab")), max_size=40))
def test_every_listener_ends_with_what_is_there(actions: list[object]) -> None:
    table = table_with(range(2))
    feed = BlockFeed(table)
    listeners = {"a": Listener(feed), "b": Listener(feed)}
    for action in actions:
        match action:
            case ("+", int() as topic):
                filled(table, range(topic, topic + 1))
            case ("-", int() as topic):
                table.remove([topic])
            case str() as name:
                listeners[name].listen()
                assert listeners[name].blocks == set(table.names())
    for listener in listeners.values():
        listener.listen()
        assert (listener.blocks, listener.snapshots) == (set(table.names()), 1)


def test_news_are_split_over_messages() -> None:
    table = table_with(range(MOST_IN_A_MESSAGE + 1))
    feed = BlockFeed(table)
    first, late = Listener(feed), Listener(feed)
    first.listen()
    assert (first.heard, len(first.blocks)) == (2, MOST_IN_A_MESSAGE + 1)
    table.clear()
    filled(table, range(5))
    for listener in (first, late):
        listener.listen()
        assert listener.blocks == {block_hashes((t,) * TABLE_BLOCK, "", TABLE_BLOCK)[0] for t in range(5)}


def test_who_is_too_far_behind_gets_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_feed, "MAX_KEPT", 3)
    table = table_with(range(1))
    feed = BlockFeed(table)
    slow, quick = Listener(feed), Listener(feed)
    slow.listen()
    quick.listen()
    for topic in range(1, 6):
        filled(table, range(topic, topic + 1))
        quick.listen()
    slow.listen()
    assert (slow.snapshots, quick.snapshots) == (2, 1)
    assert slow.blocks == quick.blocks == set(table.names())


def test_an_engine_that_does_not_tell() -> None:
    told = BlockFeed(None).watch()
    assert [next(told) for _ in range(2)] == [(BlockNews(),)] * 2
