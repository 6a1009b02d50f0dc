"""What has each watching ingress not heard yet of the blocks in a replica's prefix cache?"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deployments.worker_codec import MAX_MESSAGE_BYTES
from llama31.block_table import BlockTable
from llama31.prefix_blocks import HASH_BYTES, BlockChanges

# Changes that are kept for those who are behind; whoever is further behind gets a snapshot.
MAX_KEPT = 100_000
# Half a message: its other half is room for everything else.
MOST_IN_A_MESSAGE = MAX_MESSAGE_BYTES // 2 // HASH_BYTES
NO_CHANGES = BlockChanges()


@dataclass(frozen=True, slots=True)
class BlockNews:
    """What one message tells: `sequence` counts those that tell anything, 0 is one that does not."""

    sequence: int = 0
    is_snapshot: bool = False
    changes: BlockChanges = NO_CHANGES


class BlockFeed:
    """The one reader of a table's changes; `watch` is for one stream."""

    def __init__(self, table: BlockTable | None) -> None:
        self._table = table
        self._kept: deque[BlockChanges] = deque()
        self._kept_changes = 0
        # Batches so far; the oldest that is kept is number `_end - len(_kept)`.
        self._end = 0

    def watch(self) -> Iterator[Sequence[BlockNews]]:
        """Each turn: what the next messages tell, one message at least. The first time it is a snapshot."""
        sequence, seen = 0, None
        while True:
            if self._table is None:
                yield (BlockNews(),)
                continue
            self._collect(self._table)
            is_snapshot = seen is None or seen < self._end - len(self._kept)
            if is_snapshot:
                changes = BlockChanges(self._table.names())
            else:
                changes = _joined(list(self._kept)[len(self._kept) - (self._end - (seen or 0)) :])
            seen = self._end
            news: list[BlockNews] = []
            for part in _parts(changes) if is_snapshot or changes != NO_CHANGES else ():
                sequence += 1
                news.append(BlockNews(sequence, is_snapshot and not news, part))
            yield news or (BlockNews(),)

    def _collect(self, table: BlockTable) -> None:
        changes = table.take_changes()
        if changes == NO_CHANGES:
            return
        self._kept.append(changes)
        self._kept_changes += _size(changes)
        self._end += 1
        while self._kept_changes > MAX_KEPT:
            self._kept_changes -= _size(self._kept.popleft())


def _parts(changes: BlockChanges) -> Iterator[BlockChanges]:
    """So much as fits into a message each, at least one: first all that goes."""
    stored, dropped = changes.stored, changes.dropped
    while True:
        gone, dropped = dropped[:MOST_IN_A_MESSAGE], dropped[MOST_IN_A_MESSAGE:]
        room = MOST_IN_A_MESSAGE - len(gone)
        come, stored = stored[:room], stored[room:]
        yield BlockChanges(come, gone)
        if not (stored or dropped):
            return


def _joined(batches: Sequence[BlockChanges]) -> BlockChanges:
    """As if they had been one."""
    if len(batches) == 1:
        return batches[0]
    stored: dict[int, None] = {}
    dropped: dict[int, None] = {}
    for batch in batches:
        for goes, comes, names in ((stored, dropped, batch.dropped), (dropped, stored, batch.stored)):
            for name in names:
                if name in goes:
                    del goes[name]
                else:
                    comes[name] = None
    return BlockChanges(tuple(stored), tuple(dropped))


def _size(changes: BlockChanges) -> int:
    return len(changes.stored) + len(changes.dropped)
