"""Do tenants share a full service, and do limits hold over all ingresses? On real Ray, with scripted engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster.local import LocalCluster
from deployments.client import Client
from deployments.policies.leases import LEASE_S
from deployments.tenants_file import NewKey, make_key
from llama31.errors import RateLimited
from tests.serving import greedy, served
from tests.waiting import free_port

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("standin_checkpoint"), pytest.mark.timeout(120)]

# The engine takes eight at a time, for 0.8 s each.
SLOTS = 8
TOKENS = 40
STEP_S = 0.02
FLOOD = 64
LIMIT = 6
LONG_QUESTION = "count with me: " + " ".join(str(number) for number in range(40))
FLOODING, LIGHT, LIMITED, ANY = (make_key() for _ in range(4))


def row(name: str, key: NewKey, limits: str = "") -> str:
    return f'  {name}:\n    keys: [{{id: "{key.id}", sha256: "{key.sha256}"}}]\n{limits}'


@pytest.fixture(scope="module")
def address(ray_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One replica behind two ingress processes that share a port, with keys."""
    file = Path(tmp_path_factory.mktemp("keys")) / "tenants.yaml"
    rows = [row("flooding", FLOODING), row("light", LIGHT), row("any", ANY)]
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


async def test_a_limit_holds_over_both_processes(address: str) -> None:
    """Once the ledger has heard both; until then each may hand out half."""
    async with connections(address, ANY, 1) as (client,):
        await client.chat("hello", options=greedy(1)).text()
    async with connections(address, LIMITED, 12) as clients:
        answers = await asyncio.gather(
            *(client.chat("hello", options=greedy(2)).text() for client in clients), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert all(isinstance(refusal, RateLimited) for refusal in refused), refused
        assert len(answers) - len(refused) <= LIMIT
        # What the other process had asked for ahead comes back, if it is still there.
        entered = len(answers) - len(refused)
        async with asyncio.timeout(LEASE_S * 3):
            while entered < LIMIT:
                await asyncio.sleep(0.3)
                for client in clients:
                    try:
                        await client.chat("hello", options=greedy(2)).text()
                    except RateLimited:
                        continue
                    entered += 1
        assert entered == LIMIT
