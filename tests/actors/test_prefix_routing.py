"""Does a request go where its prompt's beginning is cached, on the real engine and through faults of the index?"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from cluster.local import LocalCluster
from deployments.client import ChatStream, Client
from deployments.directory import open_directory
from deployments.tenants_file import NewKey, file_lines, make_key
from tests.serving import greedy, ready_records, served, wait_for
from tests.waiting import free_port

METRICS_PORT = free_port()
TENANTS = ("amber", "birch")


def question(topic: int) -> str:
    """Several routing blocks of 128 tokens that no other topic shares."""
    return f"Topic {topic}. " + " ".join(f"Item {index} of topic {topic} is unremarkable." for index in range(60))


def metric(pattern: str) -> float:
    """The sum of the series that match."""
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=10) as response:
        text = response.read().decode()
    return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE))


async def ask(client: Client, text: str, tokens: int = 4) -> ChatStream:
    """The whole answer's stream."""
    stream = client.chat(text, options=greedy(tokens))
    await stream.text()
    return stream


def cached_tokens(stream: ChatStream) -> int:
    assert stream.usage is not None
    return stream.usage.cached_prompt_tokens


def replica_of(stream: ChatStream) -> str:
    assert stream.result.started is not None
    return stream.result.started.replica_id


@pytest.fixture(scope="module")
def keys() -> dict[str, NewKey]:
    return {name: make_key() for name in TENANTS}


@pytest.fixture(scope="module")
def tenants_file(keys: dict[str, NewKey], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tenants") / "tenants.yaml"
    lines = [file_lines(name, key).removeprefix("tenants:") for name, key in keys.items()]
    path.write_text("tenants:" + "".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def address(ray_cluster: LocalCluster, standin_checkpoint: Path, tenants_file: Path) -> Iterator[str]:
    overrides = {
        "plan": "tp1",
        "replicas": 2,
        "ingress.metrics_port": METRICS_PORT,
        "ingress.auth": {"tenants_file": str(tenants_file)},
    }
    with served(overrides) as (_, address):
        yield address


def blocks() -> float:
    """What the ingress knows."""
    return metric(r"llama31_index_blocks\{.*\}")


def routes(reason: str) -> float:
    return metric(rf'llama31_routes_total\{{.*reason="{reason}".*\}}')


def is_whole() -> bool:
    """Two replicas are there, and tell what they hold."""
    return len(ready_records()) == 2 and metric(r"llama31_indexed_replicas\{.*\}") == 2


async def soon(condition: Callable[[], object], limit_s: float, what: str) -> None:
    await asyncio.to_thread(wait_for, condition, limit_s, what)


def kill(replica_id: str) -> None:
    os.kill(next(record.pid for record in ready_records() if record.replica_id == replica_id), signal.SIGKILL)


@pytest.mark.vllm
@pytest.mark.timeout(400)
async def test_a_prompt_goes_where_its_beginning_is_cached(address: str, keys: dict[str, NewKey]) -> None:
    async with Client(address, api_key=keys["amber"].key) as amber, Client(address, api_key=keys["birch"].key) as birch:
        first = await ask(amber, question(1))
        await soon(lambda: blocks() >= 4, 10, "the index knows the prompt")
        again = await ask(amber, question(1) + " And then?")
        assert replica_of(again) == replica_of(first)
        assert cached_tokens(again) >= 512
        assert metric(r"llama31_route_cached_tokens_total\{.*\}") >= 512, "the router knew"
        assert cached_tokens(await ask(birch, question(1))) == 0, "tenants share no cache"

        # Once enough steps are measured the router predicts.
        await asyncio.gather(*(ask(amber, question(topic), 150) for topic in (2, 2, 3, 3, 4, 4)))
        await asyncio.sleep(0.6)
        assert replica_of(await ask(amber, question(1))) == replica_of(first)
        assert routes("prefix") >= 1
        assert metric(r"llama31_ttft_real_to_predicted_count\{.*\}") >= 1

        kill(replica_of(first))
        elsewhere = await ask(amber, question(1))
        assert (replica_of(elsewhere) == replica_of(first), cached_tokens(elsewhere)) == (False, 0)
        before = blocks()
        await soon(is_whole, 120, "a new replica took its place")
        assert blocks() == before, "and holds nothing"


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


@pytest.mark.ray
async def test_a_burst_of_equal_prompts_stays_together(scripted: str) -> None:
    async with Client(scripted) as client:
        await soon(is_whole, 10, "both tell")
        burst = await asyncio.gather(*(ask(client, question(1)) for _ in range(8)))
        assert len({replica_of(stream) for stream in burst}) == 1, "before any replica told of it"
        others = await asyncio.gather(*(ask(client, question(topic)) for topic in range(2, 10)))
        assert len({replica_of(stream) for stream in others}) == 2, "different prompts are spread"


@pytest.mark.ray
async def test_routing_outlives_the_directory(scripted: str) -> None:
    async with Client(scripted) as client:
        first = await ask(client, question(20))
        known = blocks()
        ray.kill(open_directory(), no_restart=False)
        assert replica_of(await ask(client, question(20))) == replica_of(first)
        assert blocks() >= known
        await soon(is_whole, 20, "the directory is filled again")


@pytest.mark.ray
async def test_a_killed_replica_is_forgotten_and_its_successor_is_empty(scripted: str) -> None:
    async with Client(scripted) as client:
        streams = [await ask(client, question(topic)) for topic in range(30, 34)]
        await soon(lambda: blocks() >= 16, 10, "the index knows them")
        kill(replica_of(streams[0]))
        assert replica_of(await ask(client, question(30))) != replica_of(streams[0])
        await soon(is_whole, 60, "a new replica took its place")
        assert cached_tokens(await ask(client, question(30))) > 0, "the other one has it by now"
