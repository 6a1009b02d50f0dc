"""Does one ingress route by what replicas tell of their caches, over real links?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from replica import (
    MODEL,
    Replica,
    endless,
    engine_request,
    process_metrics,
    running_fleet,
    running_replica,
    sample,
)

from deployments import replica_link, router, worker_server
from deployments.block_feed import BlockNews
from deployments.call import Call
from deployments.choices import Job
from deployments.directory import Directory
from deployments.fleet import Fleet
from deployments.policies.router import PredictedTtft
from deployments.router import Router
from llama31.chat import GenerationOptions
from llama31.prefix_blocks import ROUTING_BLOCK_TOKENS, block_hashes
from llama31.scripted_engine import Script
from tests.waiting import until

CACHE = Script(answer=endless, step_s=0.001, prefix_cache_tokens=10 * ROUTING_BLOCK_TOKENS)
PROMPT = tuple(range(3 * ROUTING_BLOCK_TOKENS + 5))
BLOCKS = block_hashes(PROMPT, "")


@pytest.fixture(autouse=True)
def _frequent_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_server, "HEARTBEAT_S", 0.02)


def routed(reason: str) -> float:
    return sample("llama31_routes_total", model=MODEL, reason=reason)


async def send(fleet: Fleet, name: str, prompt: Sequence[int] = PROMPT) -> tuple[str, int]:
    """Who got it, and how much of its prompt was found there."""
    asked = Router(MODEL, fleet, PredictedTtft(), process_metrics())
    request = engine_request(name, prompt, 2)
    blocks = await asked.blocks_of(prompt, request.cache_salt)
    job = Job(Call(name), GenerationOptions(), request, 0.0, is_limited_by_context=False, blocks=blocks)
    stream = asked.submit(job, request, 0, None, None)
    cached_tokens = 0
    while True:
        output = await stream.next()
        assert output is not None
        cached_tokens = max(cached_tokens, output.cached_prompt_tokens)
        if output.is_last:
            return stream.replica_id, cached_tokens


@asynccontextmanager
async def following(*scripts: Script) -> AsyncIterator[tuple[Fleet, Directory, tuple[Replica, ...]]]:
    async with running_fleet(*scripts) as (fleet, directory, replicas):
        telling = sum(script.prefix_cache_tokens > 0 for script in scripts)
        await until(lambda: fleet.indexed_replicas() == telling)
        yield fleet, directory, replicas


async def test_a_prompt_follows_its_beginning() -> None:
    async with following(CACHE, CACHE) as (fleet, _, _):
        first, cached = await send(fleet, "a")
        assert cached == 0
        await until(lambda: fleet.index.match(BLOCKS) == {first: 3})
        # Where it is, although the other replica is as free.
        assert await send(fleet, "b") == (first, len(PROMPT) // 16 * 16)
        others = [await send(fleet, f"c{index}", PROMPT[: ROUTING_BLOCK_TOKENS + index]) for index in range(2)]
        assert {replica_id for replica_id, _ in others} == {first}, "the first block alone decides, too"


async def test_a_burst_stays_together_before_anybody_told() -> None:
    async with following(CACHE, CACHE) as (fleet, _, _):
        sent = await asyncio.gather(*(send(fleet, f"{index}") for index in range(6)))
        assert len({replica_id for replica_id, _ in sent}) == 1


async def test_what_a_replica_never_confirms_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of one block: of three expected ones, one comes."""
    small = replace(CACHE, prefix_cache_tokens=ROUTING_BLOCK_TOKENS)
    async with following(small) as (fleet, _, _):
        await send(fleet, "a")
        assert fleet.index.match(BLOCKS) == {"replica-1": 3}
        await until(lambda: fleet.index.match(BLOCKS) == {"replica-1": 1})


async def test_a_replica_that_is_gone_is_forgotten_and_its_successor_tells_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("deployments.fleet.RECONNECT_S", 0.01)
    async with following() as (fleet, directory, _):
        replica = Replica("replica-1", CACHE, tmp_path)
        await directory.announce(await replica.start())
        await until(lambda: fleet.indexed_replicas() == 1)
        await send(fleet, "a")
        await until(lambda: fleet.index.replicas == {"replica-1": 3})
        await replica.kill()
        await until(lambda: fleet.indexed_replicas() == 0)
        assert fleet.index.blocks == 0
        successor = Replica("replica-1", CACHE, tmp_path)
        await successor.start()
        await until(lambda: fleet.indexed_replicas() == 1)
        assert await send(fleet, "b") == ("replica-1", 0)
        await successor.kill()


class Lossy:
    """A feed that loses the second of what it has to tell."""

    def __init__(self, feed: worker_server.BlockFeed) -> None:
        self._feed = feed
        self._has_lost = False
        self.streams = 0

    def watch(self) -> Iterator[Sequence[BlockNews]]:
        """As the feed's."""
        self.streams += 1
        for told in self._feed.watch():
            if not self._has_lost and told[0].sequence == 2:
                self._has_lost = True
                yield (BlockNews(),)
            else:
                yield told


async def test_whoever_missed_news_gets_a_snapshot(caplog: pytest.LogCaptureFixture) -> None:
    async with running_fleet() as (fleet, directory, _), _lossy_replica() as (replica, feed):
        await directory.announce(replica.record)
        await until(lambda: fleet.indexed_replicas() == 1)
        await send(fleet, "a")
        await until(lambda: fleet.index.blocks == 0)
        await send(fleet, "b", tuple(reversed(PROMPT)))
        await until(lambda: feed.streams == 2)
        table = replica.engine.blocks()
        assert table is not None
        await until(lambda: fleet.index.replicas == {"replica-1": len(table)})
        assert fleet.index.match(BLOCKS) == {"replica-1": 3}, "also what was told while it did not listen"
        assert fleet.ready_replicas() == 1, "its sequences were not touched"
    assert "news of its blocks are missing" in caplog.text


@asynccontextmanager
async def _lossy_replica() -> AsyncIterator[tuple[Replica, Lossy]]:
    async with running_replica(CACHE) as replica:
        feed = Lossy(replica.worker._feed)
        replica.worker._feed = feed  # type: ignore[assignment]
        yield replica, feed


async def test_routing_goes_on_without_an_index() -> None:
    """Engines that tell nothing: requests are spread, and nothing is hashed."""
    before = routed("no_speed") + routed("no_index")
    async with following(Script(), Script()) as (fleet, _, _):
        asked = Router(MODEL, fleet, PredictedTtft(), process_metrics())
        assert await asked.blocks_of(PROMPT, "") == ()
        await send(fleet, "a")
    assert routed("no_speed") + routed("no_index") == before + 1


async def test_long_prompts_are_hashed_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "HASH_IN_THREAD_TOKENS", 200)
    async with following(CACHE) as (fleet, _, _):
        asked = Router(MODEL, fleet, PredictedTtft(), process_metrics())
        assert await asked.blocks_of(PROMPT, "salt") == block_hashes(PROMPT, "salt")
        assert await asked.blocks_of(PROMPT[: ROUTING_BLOCK_TOKENS - 1], "salt") == ()


async def test_prefill_work_is_known_before_the_replica_tells() -> None:
    async with following(replace(CACHE, step_s=0.05)) as (fleet, _, _):
        link = fleet.link("replica-1")
        forecast = replica_link.Forecast(BLOCKS, cached_tokens=ROUTING_BLOCK_TOKENS)
        stream = link.submit(engine_request("a", PROMPT), 0, 0, None, forecast)
        assert link.snapshot().prefill_tokens == len(PROMPT) - ROUTING_BLOCK_TOKENS
        assert link.snapshot().age_s < 5
        link.submit(engine_request("b", PROMPT), 0, 0, None).cancel()
        assert link.snapshot().prefill_tokens == len(PROMPT) - ROUTING_BLOCK_TOKENS
        await stream.next()
        assert link._prefill_tokens == 0
