"""Serve follows our autoscaler on a real cluster: replicas come with the load and go after it, and nobody notices."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from ray import serve

from cluster.local import LocalCluster
from deployments.app import APP_NAME
from deployments.cli import main
from deployments.client import Client
from deployments.config import load_config
from deployments.decision_log import LOG_NAME, read_decisions
from deployments.deploy import RunningApplication
from tests.serving import FREE_PORTS, greedy, ready_records

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("standin_checkpoint")]

# One replica's worth of work is 10 prompts of 50 tokens a second; patience is short, to see replicas go.
OVERRIDES = FREE_PORTS | {
    "engine.kind": "scripted",
    "engine.script.step_s": 0.005,
    "replicas": 1,
    "autoscaling": {
        "min_replicas": 0,
        "max_replicas": 3,
        "prompt_tokens_per_s": 500.0,
        "output_tokens_per_s": 100_000.0,
        "lead_s": 3.0,
        "late_price": 0.0,
        "tick_s": 0.5,
        "measure_s": 2.0,
        "keep_s": 2.0,
        "idle_s": 5.0,
    },
}
QUESTION = "count with me: " + " ".join(str(number) for number in range(12))


async def test_replicas_follow_the_load_and_no_request_fails(
    ray_cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    application = RunningApplication(load_config("standin", OVERRIDES), lambda line: None)
    try:
        address = f"127.0.0.1:{(await asyncio.to_thread(application.start)).grpc_port}"
        failures: list[Exception] = []
        load = asyncio.create_task(_offer(address, 25.0, failures))
        assert await _reaches(3, 30.0), "2.5 replicas of work"
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
        light = asyncio.create_task(_offer(address, 2.0, failures))
        assert await _reaches(1, 40.0), "and drained"
        light.cancel()
        await asyncio.gather(light, return_exceptions=True)
        assert await _reaches(0, 30.0), "nobody asks"
        async with Client(address) as client:
            assert await client.chat(QUESTION, options=greedy(20)).text(), "held until there is a replica"
        assert failures == []
        log = application.run_directory / LOG_NAME
        copy = tmp_path / LOG_NAME
        copy.write_bytes(log.read_bytes())
    finally:
        await asyncio.to_thread(application.stop)
    targets = [decision.scale.target for _, decision in read_decisions(copy)]
    assert (targets[0], max(targets), targets[-1]) == (1, 3, 1)
    assert 0 in targets[targets.index(3) :], "none after the load"
    assert main(["replay", str(copy)]) == 0
    assert "all decisions are the same" in capsys.readouterr().out


async def _offer(address: str, requests_per_s: float, failures: list[Exception]) -> None:
    """So many requests a second until it is cancelled; those under way are waited for."""
    async with Client(address) as client, asyncio.TaskGroup() as group:

        async def ask() -> None:
            try:
                await client.chat(QUESTION, options=greedy(20)).text()
            except Exception as error:  # whatever a caller would have seen
                failures.append(error)

        try:
            while True:
                group.create_task(ask())
                await asyncio.sleep(1 / requests_per_s)
        except asyncio.CancelledError:
            return


async def _reaches(replicas: int, timeout_s: float) -> bool:
    """Whether so many are ready and none is left over, before the time is up."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        engine = (await asyncio.to_thread(serve.status)).applications[APP_NAME].deployments["engine"]
        running = sum(engine.replica_states.values())
        if running == replicas == len(await asyncio.to_thread(ready_records)):
            return True
        await asyncio.sleep(0.2)
    return False
