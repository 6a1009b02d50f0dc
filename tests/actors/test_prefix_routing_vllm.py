"""Does a request go where its prompt's beginning is cached, on the real engine?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local import LocalCluster
from deployments.client import Client
from deployments.tenants_file import NewKey, file_lines, make_key
from tests.prefix_routing import (
    METRICS_PORT,
    ask,
    blocks,
    cached_tokens,
    indexed,
    is_whole,
    kill,
    metric,
    question,
    replica_of,
    routes,
    soon,
)
from tests.serving import served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

TENANTS = ("amber", "birch")


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
        # Room for all prompts: nothing is dropped here.
        "engine.kv_cache_bytes": 1 << 30,
        "ingress.metrics_port": METRICS_PORT,
        "ingress.auth": {"tenants_file": str(tenants_file)},
    }
    with served(overrides) as (_, address):
        yield address


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
        await asyncio.gather(*(ask(amber, question(topic), 300) for topic in range(2, 10)))
        while routes("prefix") < 1:
            assert replica_of(await ask(amber, question(1))) == replica_of(first)
        assert metric(r"llama31_ttft_real_to_predicted_count\{.*\}") >= 1

        kill(replica_of(first))
        await soon(lambda: indexed() == 1, 10, "the ingress lost it")
        elsewhere = await ask(amber, question(1))
        assert (replica_of(elsewhere) == replica_of(first), cached_tokens(elsewhere)) == (False, 0)
        before = blocks()
        await soon(is_whole, 120, "a new replica took its place")
        assert blocks() == before, "and holds nothing"
