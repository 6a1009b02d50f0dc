"""Do requests stay together by their prompts' beginnings, also when replicas or the directory are lost?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cluster.local import LocalCluster
from deployments.client import Client
from deployments.directory import open_directory
from tests.prefix_routing import (
    METRICS_PORT,
    ask,
    blocks,
    cached_tokens,
    indexed,
    is_whole,
    kill,
    question,
    replica_of,
    soon,
)
from tests.serving import served

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def scripted(ray_cluster: LocalCluster, standin_checkpoint: Path) -> Iterator[str]:
    """Two scripted replicas with a prefix cache."""
    overrides = {
        "plan": "tp1",
        "replicas": 2,
        "engine.kind": "scripted",
        "engine.script.step_s": 0.02,
        "engine.script.prefix_cache_tokens": 100_000,
        "ingress.metrics_port": METRICS_PORT,
        "router.index_blocks": 1024,
    }
    with served(overrides) as (_, address):
        yield address


async def test_a_burst_of_equal_prompts_stays_together(scripted: str) -> None:
    async with Client(scripted) as client:
        await soon(is_whole, 10, "both tell")
        burst = await asyncio.gather(*(ask(client, question(1)) for _ in range(8)))
        assert len({replica_of(stream) for stream in burst}) == 1, "before any replica told of it"
        others = await asyncio.gather(*(ask(client, question(topic)) for topic in range(2, 10)))
        assert len({replica_of(stream) for stream in others}) == 2, "different prompts are spread"


async def test_routing_outlives_the_directory(scripted: str) -> None:
    async with Client(scripted) as client:
        first = await ask(client, question(20))
        known = blocks()
        ray.kill(open_directory(), no_restart=False)
        assert replica_of(await ask(client, question(20))) == replica_of(first)
        assert blocks() >= known
        await soon(is_whole, 20, "the directory is filled again")


async def test_a_killed_replica_is_forgotten_and_its_successor_is_empty(scripted: str) -> None:
    async with Client(scripted) as client:
        await soon(is_whole, 20, "both tell")
        streams = [await ask(client, question(topic)) for topic in range(30, 34)]
        await soon(lambda: blocks() >= 16, 10, "the index knows them")
        kill(replica_of(streams[0]))
        await soon(lambda: indexed() == 1, 10, "the ingress lost it")
        assert replica_of(await ask(client, question(30))) != replica_of(streams[0])
        await soon(is_whole, 60, "a new replica took its place")
        assert cached_tokens(await ask(client, question(30))) > 0, "the other one has it by now"
