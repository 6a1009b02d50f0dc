"""The whole service on real Ray and gRPC with the scripted engine: what does not depend on a model."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import urllib.request
from collections.abc import Iterator

import grpc
import pytest

from cluster.local import LocalCluster
from deployments.client import Client
from deployments.config import ServiceConfig
from llama31.errors import ContextTooLong, ModelNotFound
from llama31.worker.v1 import worker_service_pb2 as pb
from llama31.worker.v1 import worker_service_pb2_grpc as pb_grpc
from tests.serving import greedy, ready_records, served, wait_answering, wait_for
from tests.waiting import free_port

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("standin_checkpoint")]

LONG_QUESTION = "count with me: " + " ".join(str(number) for number in range(400))


METRICS_PORT = free_port()


@pytest.fixture(scope="module")
def service(ray_cluster: LocalCluster) -> Iterator[tuple[ServiceConfig, str]]:
    """Two replicas that echo the prompt, 20 ms a token."""
    overrides = {
        "engine.kind": "scripted",
        "engine.script.step_s": 0.02,
        "replicas": 2,
        "ingress.metrics_port": METRICS_PORT,
    }
    with served(overrides) as running:
        yield running


async def test_64_streams_finish_whole(service: tuple[ServiceConfig, str]) -> None:
    config, address = service
    async with Client(address) as client:
        questions = [f"{index}: the quick brown fox" for index in range(64)]
        streams = [client.chat(question, options=greedy(200)) for question in questions]
        answers = await asyncio.gather(*(stream.text() for stream in streams))
    # The scripted engine echoes the prompt: every answer holds its own question and nobody else's.
    assert [question in answer for question, answer in zip(questions, answers, strict=True)] == [True] * 64
    assert all(stream.usage and stream.usage.output_tokens == stream.usage.prompt_tokens for stream in streams)
    replicas = {stream.result.started.replica_id for stream in streams if stream.result.started}
    assert replicas == {record.replica_id for record in ready_records()}, "the load is spread"
    assert config.replicas == 2


async def test_errors_reach_the_client_as_our_classes(service: tuple[ServiceConfig, str]) -> None:
    _, address = service
    async with Client(address) as client:
        with pytest.raises(ModelNotFound):
            await client.chat("hello", model="llama-9").text()
        with pytest.raises(ContextTooLong):
            await client.chat("hello " * 5000).text()
        assert await client.chat("hello", options=greedy(5)).text(), "the server keeps serving"


def test_worker_refuses_peers_without_the_cluster_token(service: tuple[ServiceConfig, str]) -> None:
    # The blocking client: grpc.aio can lose a status that arrives while it writes (grpc issue 36066).
    address = ready_records()[0].address
    assert address is not None
    hello = pb.ConnectRequest(hello=pb.Hello(ingress_id="intruder", epoch=1, protocol=1))
    watch = pb.WatchRequest(ingress_id="intruder")
    for metadata in ((), (("authorization", "Bearer wrong"),)):
        for target in (f"unix:{address.unix_path}", address.target):
            with grpc.insecure_channel(target) as channel:
                stub = pb_grpc.WorkerServiceStub(channel)
                for call in (
                    stub.Connect(iter([hello]), metadata=metadata, timeout=10),
                    stub.Watch(watch, metadata=metadata, timeout=10),
                ):
                    with pytest.raises(grpc.RpcError):
                        next(call)
                    assert call.code() is grpc.StatusCode.UNAUTHENTICATED


def scrape() -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=5) as response:
        return str(response.read().decode())


async def test_one_port_serves_the_series_of_ingress_and_replicas(service: tuple[ServiceConfig, str]) -> None:
    config, address = service
    async with Client(address) as client:
        await client.chat("hello", options=greedy(5)).text()
    text = await asyncio.to_thread(scrape)
    ended = f'llama31_requests_total{{method="chat",model="{config.model}",outcome="MAX_OUTPUT_TOKENS"}}'
    assert ended in text
    for record in ready_records():
        assert f'llama31_replica_ready{{model="{config.model}",replica="{record.replica_id}"}} 1.0' in text
    assert "hello" not in text, "no prompt text in metrics"


async def test_streams_of_a_killed_replica_go_on_without_a_lost_character_and_it_comes_back(
    service: tuple[ServiceConfig, str],
) -> None:
    _, address = service
    async with Client(address) as client:
        undisturbed = await client.chat(LONG_QUESTION, options=greedy(1000)).text()
        streams = [client.chat(LONG_QUESTION, options=greedy(1000)) for _ in range(8)]
        begun = [await anext(stream) for stream in streams]
        victim = next(r for r in ready_records() if r.replica_id == streams[0].result.started.replica_id)
        killed_at_s = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        rests = await asyncio.gather(*(stream.text() for stream in streams))
        assert {first + rest for first, rest in zip(begun, rests, strict=True)} == {undisturbed}
        assert time.monotonic() - killed_at_s < 60
        # New requests go to the other replica meanwhile.
        assert await client.chat("hello", options=greedy(5)).text()

    def replaced() -> bool:
        now = {record.replica_id for record in ready_records()}
        return len(now) == 2 and victim.replica_id not in now

    await asyncio.to_thread(wait_for, replaced, 60, "a new replica is ready")
    await wait_answering(address, 10)
