"""Do vLLM's block events become our routing blocks? Events recorded from vLLM 0.32.0 with the stand-in model, and made.

tests/data/vllm_block_events.jsonl: number and payload (base64) of each message; TP1, blocks of 128 tokens, 8 of them in
the cache; six answers of which two repeat a prompt, then two at once with one prompt.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from llama31.prefix_blocks import ROUTING_BLOCK_TOKENS, block_hashes
from llama31.vllm_blocks import Batch, Cleared, Removed, Stored, VllmBlocks, endpoint
from tests.documents import ROOT
from tests.waiting import until

RECORDED = ROOT / "tests" / "data" / "vllm_block_events.jsonl"
SIZE = 16


def recorded() -> list[tuple[int, bytes]]:
    rows = (json.loads(line) for line in RECORDED.read_text().splitlines())
    return [(number, base64.b64decode(payload)) for number, payload in rows]


@asynccontextmanager
async def reading(directory: Path, block_tokens: int = SIZE) -> AsyncIterator[VllmBlocks]:
    blocks = VllmBlocks(directory, block_tokens)
    try:
        yield blocks
    finally:
        blocks.close()


async def test_recorded_events_are_followed(tmp_path: Path) -> None:
    copies: Counter[int] = Counter()
    prefixes: dict[int | None, tuple[int, ...]] = {None: ()}
    stored = removed = 0
    async with reading(tmp_path, ROUTING_BLOCK_TOKENS) as blocks:
        for number, payload in recorded():
            blocks.take(number, payload)
            for event in msgspec.msgpack.decode(payload)[1]:
                told: dict[str, Any] = event
                if told["type"] == "BlockRemoved":
                    removed += len(told["block_hashes"])
                    copies.subtract(told["block_hashes"])
                    continue
                parent = told["parent_block_hash"]
                for index, name in enumerate(told["block_hashes"]):
                    start = index * ROUTING_BLOCK_TOKENS
                    ids = tuple(told["token_ids"][start : start + ROUTING_BLOCK_TOKENS])
                    prefixes[name] = prefixes[parent] + ids
                    parent = name
                    copies[name] += 1
                    stored += 1
            expected = {block_hashes(prefixes[name], "")[-1] for name in +copies}
            assert set(blocks.table.names()) == expected
    assert min(copies.values()) == 0, "what goes away came before"
    assert (stored, removed) == (19, 14)
    assert max(copies.values()) == 1


def batch(*events: Stored | Removed | Cleared) -> bytes:
    return msgspec.msgpack.encode(Batch(0.0, list(events)))


def prompt(salt: str = "", keys: tuple[int | bytes, ...] = tuple(range(8)), medium: str | None = "GPU") -> Stored:
    """One routing block of eight."""
    extra: list[list[object] | None] = [[salt] if salt else None, *[None] * 7]
    return Stored(list(keys), None, list(range(8 * SIZE)), SIZE, medium, extra)


@pytest.mark.parametrize("salt", ["", "a tenant's"])
async def test_tenants_are_told_apart(tmp_path: Path, salt: str) -> None:
    async with reading(tmp_path) as blocks:
        blocks.take(0, batch(prompt(salt)))
        assert blocks.table.names() == block_hashes(range(8 * SIZE), salt)
        blocks.take(1, batch(Removed([3])))
        assert blocks.table.names() == ()
        blocks.take(2, batch(Stored([3], 2, list(range(3 * SIZE, 4 * SIZE)), SIZE)))
        assert blocks.table.names() == block_hashes(range(8 * SIZE), salt), "computed again"
        blocks.take(3, batch(Cleared()))
        assert blocks.table.names() == ()


async def test_blocks_that_lie_elsewhere_are_not_counted(tmp_path: Path) -> None:
    async with reading(tmp_path) as blocks:
        blocks.take(0, batch(prompt(medium="CPU"), prompt(keys=tuple(bytes([i]) for i in range(8)))))
        blocks.take(1, batch(Removed([bytes([0])], "CPU")))
        assert len(blocks.table) == 1


async def test_a_lost_message_empties_the_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Over the socket that vLLM publishes on. Nothing wrong stays, and what comes later counts."""
    publisher = zmq.asyncio.Context.instance().socket(zmq.XPUB)
    publisher.bind(endpoint(tmp_path))
    try:
        async with reading(tmp_path) as blocks:
            async with asyncio.timeout(5):
                await publisher.recv()  # the subscription

            async def publish(number: int, payload: bytes) -> None:
                await publisher.send_multipart((b"", number.to_bytes(8, "big"), payload))

            await publish(0, batch(prompt()))
            await until(lambda: len(blocks.table) == 1)
            await publish(2, batch(prompt("b", tuple(range(10, 18)))))
            await until(lambda: blocks.table.names() == block_hashes(range(8 * SIZE), "b"))
            await publish(3, b"\xc1")
            await until(lambda: len(blocks.table) == 0)
            await publish(4, batch(prompt()))
            await until(lambda: len(blocks.table) == 1)
    finally:
        publisher.close(linger=0)
    assert "block events 1 to 1 were lost" in caplog.text
    assert "nobody understands" in caplog.text
