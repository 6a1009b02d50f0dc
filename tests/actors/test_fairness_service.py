"""Do tenants share a full service, and do limits hold over all ingresses? On real Ray, with scripted engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from cluster.local import LocalCluster
from deployments.client import Client
from deployments.policies.leases import LEASE_S
from deployments.tenants_file import NewKey, make_key
from llama31.v1 import chat_service_pb2 as chat_pb
from llama31.v1 import chat_service_pb2_grpc as chat_grpc
from llama31.v1 import common_pb2 as common_pb
from tests.serving import greedy, served
from tests.waiting import free_port

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("standin_checkpoint"), pytest.mark.timeout(120)]

# The engine takes eight at a time, for 0.8 s each.
SLOTS = 8
TOKENS = 40
STEP_S = 0.02
FLOOD = 64
LIMIT = 6
MODEL = "smollm2-135m"
LONG_QUESTION = "count with me: " + " ".join(str(number) for number in range(40))
FLOODING, LIGHT, LIMITED = (make_key() for _ in range(3))


def row(name: str, key: NewKey, limits: str = "") -> str:
    return f'  {name}:\n    keys: [{{id: "{key.id}", sha256: "{key.sha256}"}}]\n{limits}'


@pytest.fixture(scope="module")
def address(ray_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One replica behind two ingress processes that share a port, with keys."""
    file = Path(tmp_path_factory.mktemp("keys")) / "tenants.yaml"
    rows = [row("flooding", FLOODING), row("light", LIGHT)]
    rows.append(row("limited", LIMITED, f"    requests_per_minute: {LIMIT}\n"))
    file.write_text("tenants:\n" + "".join(rows))
    overrides = {
        "engine.kind": "scripted",
        "engine.script.step_s": STEP_S,
        "engine.max_running": SLOTS,
        "replicas": 1,
        "ingress.replicas": 2,
        "ingress.port": free_port(),
        "ingress.http_port": None,
        "ingress.auth.tenants_file": str(file),
    }
    with served(overrides) as (_, target):
        yield target


@asynccontextmanager
async def connections(address: str, key: NewKey, count: int) -> AsyncIterator[list[Client]]:
    """Each of its own, so that the kernel spreads them over the processes."""
    clients = [Client(address, api_key=key.key) for _ in range(count)]
    try:
        yield clients
    finally:
        await asyncio.gather(*(client.close() for client in clients))


async def test_a_flood_of_one_tenant_does_not_hold_up_another(address: str) -> None:
    begun: list[int] = []

    async def flood(client: Client, index: int) -> None:
        stream = client.chat(LONG_QUESTION, options=greedy(TOKENS))
        await anext(stream)
        begun.append(index)
        await stream.text()

    async with connections(address, FLOODING, 4) as clients, connections(address, LIGHT, 4) as light:
        tasks = [asyncio.create_task(flood(clients[i % 4], i)) for i in range(FLOOD)]
        async with asyncio.timeout(20):
            while len(begun) < SLOTS // 2:
                await asyncio.sleep(0.01)
        for client in light:
            before = len(begun)
            await client.chat(LONG_QUESTION, options=greedy(TOKENS)).text()
            # One wave of the flood ends and makes room, and another may begin with it; nobody else is passed.
            assert len(begun) - before <= 3 * SLOTS, "the next to enter, not the last of sixty-four"
        assert len(begun) < FLOOD, "the flood still waits when the light tenant is done"
        await asyncio.gather(*tasks)


async def is_let_in(address: str, key: NewKey) -> bool:
    """One request over a connection of its own, which the kernel gives to either process; not sent again by itself."""
    options = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))
    message = chat_pb.Message(role=chat_pb.ROLE_USER, parts=[chat_pb.Part(text="hello")])
    spec = chat_pb.ChatSpec(model=MODEL, messages=[message], stop=common_pb.StopOptions(max_output_tokens=2))
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        chat = chat_grpc.ChatServiceStub(channel).Chat
        try:
            await chat(chat_pb.ChatRequest(spec=spec), metadata=(("authorization", f"Bearer {key.key}"),), timeout=20)
        except grpc.aio.AioRpcError as refusal:
            if "rate limit" not in str(refusal.details()):
                raise
            return False
    return True


async def test_a_limit_holds_over_both_processes(address: str) -> None:
    entered = sum(await asyncio.gather(*(is_let_in(address, LIMITED) for _ in range(4 * LIMIT))))
    assert 1 <= entered <= LIMIT
    # What a process had asked for ahead comes back; and nothing is left beyond the limit.
    async with asyncio.timeout(LEASE_S * 5):
        while entered < LIMIT:
            entered += await is_let_in(address, LIMITED)
    assert not any(await asyncio.gather(*(is_let_in(address, LIMITED) for _ in range(2 * LIMIT))))
