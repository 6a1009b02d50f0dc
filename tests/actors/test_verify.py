"""Does `llama31 verify` see, on a real service, that the plan is kept, and that it is not?"""

from __future__ import annotations

import asyncio

import pytest

from cluster.local import LocalCluster
from deployments.client import Client
from deployments.deploy import read_directory, read_ingresses
from deployments.plan_drift import compare
from deployments.verify_command import look
from tests.serving import greedy, served
from tests.waiting import free_port

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("standin_checkpoint")]

REQUESTS = 40
PROMISED = {"kv_tokens": 1, "rate_per_s": 1e6, "ttft_p99_s": 5.0, "itl_p99_s": 5.0, "output_tokens_per_s": 1000.0}


@pytest.mark.parametrize(
    ("promise", "drifted"),
    [
        ({}, set()),
        (
            {"kv_tokens": 10**9, "ttft_p99_s": 1e-6, "itl_p99_s": 1e-6},
            {"KV tokens per replica", "TTFT p99 ms", "ITL p99 ms"},
        ),
        ({"rate_per_s": 0.01}, {"requests/s"}),
    ],
)
def test_a_service_and_its_plan(ray_cluster: LocalCluster, promise: dict[str, float], drifted: set[str]) -> None:
    overrides = {
        "engine.kind": "scripted",
        "engine.script.step_s": 0.01,
        "ingress.metrics_port": free_port(),
        "planned": PROMISED | promise,
    }
    with served(overrides) as (_, address):
        urls = {ingress.metrics for ingress in read_ingresses()}

        def ask(_: float) -> None:
            asyncio.run(_questions(address))

        planned, running = look(read_directory(), urls, 2.0, None, ask)
    rows = {row.what: row for row in compare(planned, running)}
    assert {what for what, row in rows.items() if row.state == "drift"} == drifted
    assert running.requests_per_s == REQUESTS / 2
    assert running.ttft.samples == REQUESTS
    assert running.replicas[0].ready


async def _questions(address: str) -> None:
    async with Client(address) as client:
        streams = [client.chat(f"question {number}", options=greedy(20)) for number in range(REQUESTS)]
        await asyncio.gather(*(stream.text() for stream in streams))
