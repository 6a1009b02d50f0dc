"""Does a request go where its prompt's beginning is cached, on the real engine and through faults of the index?"""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local import LocalCluster
from deployments.client import ChatStream, Client
from deployments.tenants_file import NewKey, file_lines, make_key
from tests.serving import greedy, served, wait_for
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


@pytest.mark.vllm
@pytest.mark.timeout(400)
async def test_a_prompt_goes_where_its_beginning_is_cached(address: str, keys: dict[str, NewKey]) -> None:
    async with Client(address, api_key=keys["amber"].key) as amber, Client(address, api_key=keys["birch"].key) as birch:
        first = await ask(amber, question(1))
        await asyncio.to_thread(wait_for, lambda: metric(r"llama31_index_blocks\{.*\}") >= 4, 10, "the index knows it")
        again = await ask(amber, question(1) + " And then?")
        assert replica_of(again) == replica_of(first)
        assert again.usage is not None
        assert again.usage.cached_prompt_tokens >= 512
        other = await ask(birch, question(1))
        assert other.usage is not None
        assert other.usage.cached_prompt_tokens == 0, "tenants share no cache"
    assert metric(r'llama31_routes_total\{.*reason="prefix".*\}') >= 1
