"""Are vLLM's series on our scrape, and what do ranks and a start tell of themselves on the real engine?"""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.local import LocalCluster
from deployments.client import Client
from tests.serving import greedy, ready_records, served, wait_for
from tests.waiting import free_port

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("standin_checkpoint"), pytest.mark.timeout(300)]

METRICS_PORT = free_port()
# Longer than a few KV blocks, so that the second time most of it is cached.
QUESTION = "Tell me about the capital of France, " * 80
# Of those that vLLM 0.32 has, the ones that dashboards use.
VLLM_SERIES = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens",
    "vllm:generation_tokens",
    "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits",
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_success",
}

Series = dict[str, dict[tuple[tuple[str, str], ...], float]]


@pytest.fixture(scope="module")
def address(ray_cluster: LocalCluster) -> Iterator[str]:
    with served({"plan": "tp2", "ingress.metrics_port": METRICS_PORT}) as (_, address):
        yield address


def scrape() -> Series:
    """Name -> labels -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=10) as response:
        text = response.read().decode()
    found: Series = {}
    for family in text_string_to_metric_families(text):
        found.setdefault(family.name, {})
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def scrape_if_served() -> Series:
    """Nothing while nobody holds the port: when the process that did has died, another takes it over soon."""
    try:
        return scrape()
    except OSError:
        return {}


def total(series: Series, name: str, **labels: str) -> float:
    return sum(value for key, value in series.get(name, {}).items() if set(labels.items()) <= set(key))


async def ask(address: str) -> int:
    async with Client(address) as client:
        stream = client.chat(QUESTION, options=greedy(16))
        await stream.text()
        assert stream.usage is not None
        assert stream.usage.resources is None, "logical GPUs draw nothing that we know of"
        return stream.usage.prompt_tokens


def test_ranks_and_engine_tell_of_themselves(address: str) -> None:
    prompt_tokens = asyncio.run(ask(address))
    asyncio.run(ask(address))
    (record,) = ready_records()
    labels = {"model": record.model, "replica": record.replica_id}

    def counted() -> bool:
        return total(scrape(), "llama31_replica_tokens_total", phase="decode") >= 32

    wait_for(counted, 10, "both answers are counted")
    series = scrape()
    assert series.keys() >= VLLM_SERIES
    assert {dict(key)["model_name"] for key in series["vllm:num_requests_running"]} == {record.model}, "no path"
    hits = total(series, "llama31_replica_prefix_hit_tokens_total", **labels)
    assert 0 < hits < total(series, "llama31_replica_prefix_query_tokens_total", **labels)
    assert total(series, "llama31_replica_tokens_total", phase="prefill", **labels) == 2 * prompt_tokens - hits
    alive = {dict(key)["rank"]: (dict(key), value) for key, value in series["llama31_rank_alive"].items()}
    assert alive.keys() == {"0", "1"}
    for report in record.ranks:
        shown, value = alive[str(report.rank)]
        assert value == 1
        assert shown == {**labels, "rank": str(report.rank), "stage": "0", "node": report.node_id[:8]}
    assert {dict(key)["rank"] for key in series["llama31_rank_silent_seconds"]} == {"0", "1"}
    assert set(series["llama31_rank_silent_seconds"].values()) == {0.0}, "there is no work"
    assert not series.keys() & {"llama31_energy_joules_total", "llama31_replica_power_watts"}
    phases = {dict(key)["phase"]: value for key, value in series["llama31_cold_start_seconds_count"].items()}
    assert phases == {"placing": 1, "starting": 1, "loading": 1, "warming up": 1}
    assert total(series, "llama31_replica_step_seconds_count") >= 32


def test_a_rank_that_hangs_is_silent_and_one_that_dies_is_counted(address: str) -> None:
    (record,) = ready_records()
    victim = record.ranks[1]
    os.kill(victim.pid, signal.SIGSTOP)

    async def watch_silence() -> None:
        asking = asyncio.create_task(ask(address))

        def silent() -> bool:
            return total(scrape_if_served(), "llama31_rank_silent_seconds", rank="1") > 2

        await asyncio.to_thread(wait_for, silent, 30, "the stopped rank is silent")
        os.kill(victim.pid, signal.SIGKILL)
        # It would go on in the gang that takes this one's place.
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(watch_silence())
    lost = {"rank": "1", "stage": "0", "node": victim.node_id[:8]}
    wait_for(lambda: total(scrape_if_served(), "llama31_ranks_lost_total", **lost) == 1, 30, "the lost rank is counted")

    def is_gone() -> bool:
        series = scrape_if_served()
        return "llama31_gpus" in series and "llama31_rank_alive" not in series

    wait_for(is_gone, 60, "nothing is left of the replica")
