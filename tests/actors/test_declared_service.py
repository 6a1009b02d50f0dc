"""The service as a RayService deploys it: a Serve config PUT to the dashboard, and nobody's `llama31 serve`."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from deployments.client import Client
from deployments.config import load_config
from tests.declared import DeclaredService, Pids
from tests.ray_processes import ray_processes
from tests.serving import greedy, wait_answering, wait_for
from tests.waiting import free_port

pytestmark = [
    pytest.mark.cli,
    pytest.mark.usefixtures("no_shared_cluster", "standin_checkpoint"),
    pytest.mark.timeout(400),
]

GRPC, HTTP, METRICS = free_port(), free_port(), free_port()
# 0.1 s a token: long enough to outlive a restart of the head.
LONG_QUESTION = "count with me: " + " ".join(str(number) for number in range(300))
SERVICE: dict[str, Any] = {
    "proxy_location": "Disabled",
    "applications": [
        {
            "name": "llama31",
            "import_path": "deployments.app:build",
            "route_prefix": None,
            "args": {
                "model": "smollm2-135m",
                "replicas": 2,
                "engine": {
                    "kind": "scripted",
                    "device": "cpu",
                    "kv_cache_bytes": 2**28,
                    "max_model_tokens": 4096,
                    "max_running": 64,
                    "node_labels": {"llama31.role": "engine"},
                    "script": {"step_s": 0.1},
                },
                "ingress": {
                    "replicas": 2,
                    "node_labels": {"llama31.role": "ingress"},
                    "port": GRPC,
                    "http_port": HTTP,
                    "metrics_port": METRICS,
                    "drain_s": 60.0,
                },
            },
        }
    ],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The service with one key of its configuration changed."""
    tree = deepcopy(SERVICE)
    *sections, key = path.split(".")
    place = tree["applications"][0]["args"]
    for section in sections:
        place = place[section]
    place[key] = value
    return tree


def scaled(**processes: int) -> dict[str, Any]:
    """The service with other numbers of processes, as an override: that changes no other process."""
    tree = deepcopy(SERVICE)
    overrides = [{"name": name, "num_replicas": number} for name, number in processes.items()]
    tree["applications"][0]["deployments"] = overrides
    return tree


@pytest.fixture(scope="module")
def service() -> Iterator[DeclaredService]:
    with ray_processes("llama31.role=ingress", "llama31.role=engine") as cluster:
        yield DeclaredService(cluster, SERVICE)


async def ask(address: str, question: str = "hello") -> str:
    """Over a connection of its own: the kernel may give it to any process of the port."""
    async with Client(address) as client:
        return await client.chat(question, options=greedy(5)).text()


async def test_a_declared_service_answers_and_shows_its_status(service: DeclaredService) -> None:
    for _ in range(10):
        assert await ask(service.address)
    chat = await asyncio.to_thread(service.llama31, "chat", "--address", service.address, "hello")
    assert (chat.returncode, "hello" in chat.stdout) == (0, True), chat.stderr
    status = await asyncio.to_thread(service.status)
    assert status.startswith("application RUNNING\n")
    assert len(re.findall(rf"^ingress .* gRPC {GRPC}, HTTP {HTTP} +pid \d+ +ready$", status, re.MULTILINE)) == 2
    assert len(re.findall(r"^replica .* ready  running 0  waiting 0  KV 0 of", status, re.MULTILINE)) == 2


def test_the_same_config_again_changes_no_process(service: DeclaredService) -> None:
    before = service.pids()
    service.put(deepcopy(SERVICE))
    assert service.pids() == before


def scrape() -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS}/metrics", timeout=5) as response:
        return str(response.read().decode())


async def test_requests_at_both_ingresses_are_counted_once(service: DeclaredService) -> None:
    series = r'llama31_requests_total\{method="chat",model="smollm2-135m",outcome="MAX_OUTPUT_TOKENS"\} (\d+)'

    def counted() -> int:
        return sum(int(number) for number in re.findall(series, scrape()))

    before = await asyncio.to_thread(counted)
    for _ in range(20):
        await ask(service.address, "one two three four five six seven")
    assert await asyncio.to_thread(counted) == before + 20


async def test_a_killed_ingress_is_replaced_while_the_other_serves(service: DeclaredService) -> None:
    before = await asyncio.to_thread(service.pids)
    victim = min(before.ingresses)
    os.kill(victim, signal.SIGKILL)
    for _ in range(20):
        assert await ask(service.address), "the other process has the port"

    def replaced() -> Pids | None:
        now = service.pids()
        return now if victim not in now.ingresses else None

    after = await asyncio.to_thread(wait_for, replaced, 60, "Serve starts another ingress")
    assert after.replicas == before.replicas, "the replicas are unhurt"


async def test_one_ingress_less_breaks_no_stream(service: DeclaredService) -> None:
    before = await asyncio.to_thread(service.pids)
    ready = await asyncio.to_thread(service.llama31, "ready")
    assert ready.stdout == "2 of 2 ingress processes are ready\n"
    clients = [Client(service.address) for _ in range(8)]
    streams = [client.chat(" ".join(["word"] * 60), options=greedy(80)) for client in clients]
    for stream in streams:
        await anext(stream)
    await asyncio.to_thread(service.put, scaled(ingress=1))
    for _ in range(20):
        assert await ask(service.address), "the process that drains has left the port"
    for stream in streams:
        assert "word word" in await stream.text()
    await asyncio.gather(*(client.close() for client in clients))
    after = await asyncio.to_thread(service.pids)
    assert len(after.ingresses & before.ingresses) == 1
    assert after.replicas == before.replicas
    await asyncio.to_thread(service.put, SERVICE)
    assert len((await asyncio.to_thread(service.pids)).ingresses) == 2


async def test_what_serve_wants_counts_and_not_what_is_configured(service: DeclaredService) -> None:
    def wanted(replicas: int) -> bool:
        return f'llama31_replicas_wanted{{model="smollm2-135m"}} {replicas}.0' in scrape()

    await asyncio.to_thread(wait_for, lambda: wanted(2), 30, "both are wanted")
    await asyncio.to_thread(service.put, scaled(engine=1))
    await asyncio.to_thread(wait_for, lambda: wanted(1), 30, "one is wanted")
    await asyncio.to_thread(service.put, SERVICE)
    await asyncio.to_thread(wait_for, lambda: wanted(2), 30, "both are wanted again")


async def test_a_node_is_drained_without_ray(service: DeclaredService) -> None:
    """What a pod's hook does before the pod ends: streams end whole, nobody listens any more."""
    before = await asyncio.to_thread(service.pids)
    ready = await asyncio.to_thread(service.llama31, "ready")
    assert ready.stdout == "2 of 2 ingress processes are ready\n"
    clients = [Client(service.address) for _ in range(8)]
    streams = [client.chat(" ".join(["word"] * 60), options=greedy(80)) for client in clients]
    for stream in streams:
        await anext(stream)
    drain = asyncio.create_task(asyncio.to_thread(service.llama31, "drain", "--wait", "30"))
    for stream in streams:
        assert "word word" in await stream.text()
    assert (await drain).stdout == "2 of 2 ingress processes have drained\n"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", GRPC), 5)
    await asyncio.gather(*(client.close() for client in clients))
    for pid in before.ingresses:
        os.kill(pid, signal.SIGKILL)

    def replaced() -> bool:
        return not before.ingresses & service.pids().ingresses

    await asyncio.to_thread(wait_for, replaced, 60, "Serve starts others")
    await wait_answering(service.address, 30)


async def test_a_changed_engine_is_rolled_out(service: DeclaredService) -> None:
    before = await asyncio.to_thread(service.pids)
    await asyncio.to_thread(service.put, changed("engine.max_running", 32))
    after = await asyncio.to_thread(service.pids)
    assert not before.replicas & after.replicas
    await wait_answering(service.address, 10)


async def test_a_wrong_config_is_refused_in_words_and_harms_nobody(service: DeclaredService) -> None:
    words = await asyncio.to_thread(service.put_unchecked, changed("engine.max_runing", 1))
    assert "engine.max_runing: Extra inputs are not permitted" in words
    assert await ask(service.address)
    status = await asyncio.to_thread(service.status)
    assert status.startswith("application DEPLOY_FAILED: ")
    assert "max_runing" in status.splitlines()[0]
    await asyncio.to_thread(service.put, SERVICE)


async def test_streams_outlive_the_head(service: DeclaredService) -> None:
    """The head dies with GCS, Serve controller and dashboard, and comes back on the same storage."""
    before = await asyncio.to_thread(service.pids)
    async with Client(service.address) as client:
        streams = [client.chat(LONG_QUESTION, options=greedy(600)) for _ in range(8)]
        for stream in streams:
            await anext(stream)
        await asyncio.to_thread(service.cluster.kill_head)
        killed_at_s = time.monotonic()
        assert await ask(service.address), "new requests need no head"
        await asyncio.to_thread(service.cluster.start_head)

        def recovered() -> bool:
            return service.details().get("llama31", {}).get("status") == "RUNNING"

        await asyncio.to_thread(wait_for, recovered, 90, "Serve is back")
        print(f"head back after {time.monotonic() - killed_at_s:.0f} s")
        assert await ask(service.address)
        await asyncio.gather(*(stream.text() for stream in streams))
        assert [stream.usage.output_tokens for stream in streams if stream.usage] == [600] * 8
    assert await asyncio.to_thread(service.pids) == before, "nothing was restarted"


async def test_the_stand_in_declared(service: DeclaredService) -> None:
    """The real engine, placed by a Serve controller that came back from storage."""
    standin = load_config("standin").model_dump(mode="json", exclude={"local_cluster"})
    tree = deepcopy(SERVICE)
    args = tree["applications"][0]["args"]
    args["engine"] = standin["engine"] | {"node_labels": args["engine"]["node_labels"]}
    args |= {"plan": "tp2", "replicas": 1}
    await asyncio.to_thread(service.put, tree)
    async with Client(service.address) as client:
        assert "Paris" in await client.chat("What is the capital of France?", options=greedy(16)).text()
    assert len(re.findall("^  rank", await asyncio.to_thread(service.status), re.MULTILINE)) == 2
