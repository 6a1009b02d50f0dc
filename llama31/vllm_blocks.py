"""How does vLLM say what its prefix cache holds? Its engine process publishes events on a unix socket; read here.

Pinned to vLLM 0.32 (`vllm.distributed.kv_events`). Events of a step follow each other in order, and a step has one
message; a lost message costs what is known, never what is true: the table starts from nothing.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import zmq
import zmq.asyncio

from llama31.block_table import BlockTable

if TYPE_CHECKING:
    from vllm.config.kv_events import KVEventsConfig

log = logging.getLogger("llama31.engine")

SOCKET = "blocks.sock"
# Messages that may wait at either end: one a step, so minutes of steps.
MAX_WAITING = 100_000
# Where the ranks compute; blocks that were moved elsewhere are not ours.
MEDIA = ("GPU", None)


class Stored(msgspec.Struct, tag="BlockStored"):
    """Blocks of one sequence. The cache salt is the last extra key of a chain's first block."""

    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    medium: str | None = None
    extra_keys: list[list[object] | None] | None = None


class Removed(msgspec.Struct, tag="BlockRemoved"):
    """One copy of each block is gone."""

    block_hashes: list[int | bytes]
    medium: str | None = None


class Cleared(msgspec.Struct, tag="AllBlocksCleared"):
    """The cache is empty."""


class Batch(msgspec.Struct, array_like=True):
    """What one step did."""

    ts: float
    events: list[Stored | Removed | Cleared]


class VllmBlocks:
    """Keeps a table by what vLLM publishes in `directory`."""

    def __init__(self, directory: Path, engine_block_tokens: int) -> None:
        self.table = BlockTable(engine_block_tokens)
        self._decoder = msgspec.msgpack.Decoder(Batch)
        self._next = 0
        self._socket = zmq.asyncio.Context.instance().socket(zmq.SUB)
        self._socket.set_hwm(MAX_WAITING)
        self._socket.subscribe(b"")
        self._socket.connect(endpoint(directory))
        self._reading = asyncio.create_task(self._read())

    def close(self) -> None:
        """Stops reading."""
        self._reading.cancel()
        self._socket.close(linger=0)

    def take(self, sequence: int, payload: bytes) -> None:
        """One message; they are numbered from 0."""
        if sequence != self._next:
            log.warning("block events %d to %d were lost: the table starts anew", self._next, sequence - 1)
            self.table.clear()
        self._next = sequence + 1
        for event in self._decoder.decode(payload).events:
            self._apply(event)

    async def _read(self) -> None:
        while True:
            parts = await self._socket.recv_multipart()
            try:
                _, sequence, payload = parts
                self.take(int.from_bytes(sequence, "big"), payload)
            except Exception as error:  # whatever it is: a table that is not fed is worse than an empty one
                log.warning("block events that nobody understands: %s", error)
                self.table.clear()

    def _apply(self, event: Stored | Removed | Cleared) -> None:
        match event:
            case Stored() if event.medium in MEDIA:
                self.table.store(event.block_hashes, event.parent_block_hash, event.token_ids, _salt(event))
            case Removed() if event.medium in MEDIA:
                self.table.remove(event.block_hashes)
            case Cleared():
                self.table.clear()


def endpoint(directory: Path) -> str:
    """Where vLLM publishes."""
    return f"ipc://{directory / SOCKET}"


def events_config(directory: Path) -> KVEventsConfig:
    """vLLM's own configuration of it."""
    from vllm.config.kv_events import KVEventsConfig

    return KVEventsConfig(
        enable_kv_cache_events=True,
        publisher="zmq",
        endpoint=endpoint(directory),
        # Nobody asks for old ones.
        buffer_steps=1,
        hwm=MAX_WAITING,
        max_queue_size=MAX_WAITING,
    )


def _salt(event: Stored) -> str:
    keys = event.extra_keys[0] if event.extra_keys else None
    return str(keys[-1]) if keys else ""
