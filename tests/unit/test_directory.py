"""Does the directory wake those who wait, once per change, and forget replicas that fell silent?"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from ray.exceptions import RayActorError

from deployments import directory as directory_module
from deployments.directory import EXPIRE_AFTER_S, Directory, IngressRecord, ReplicaRecord, WorkerAddress, told
from llama31.engine import RankReport
from tests.waiting import soon, until

FIRST = ReplicaRecord("replica-1", 1, "model", "tp1", "starting")
SECOND = replace(FIRST, replica_id="replica-2")
DOOR = IngressRecord("ingress-1", "10.0.0.1", 1, "0.0.0.0", 9000, None, "")


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(directory_module, "_now_s", clock)
    return clock


async def test_a_newcomer_gets_the_picture_at_once() -> None:
    directory = Directory()
    assert await soon(directory.watch(-1)) == (0, ())
    await directory.announce(FIRST)
    await directory.announce(SECOND)
    version, records = await soon(directory.watch(-1))
    assert records == (FIRST, SECOND) == await directory.list()
    assert version > 0


@pytest.mark.parametrize(
    "changed",
    [
        replace(FIRST, phase="ready"),
        replace(FIRST, detail="rank 1 of 2"),
        replace(FIRST, incarnation=2),
        replace(FIRST, address=WorkerAddress("/run/w.sock", "boot", "10.0.0.1:1")),
    ],
)
async def test_a_change_wakes_all_who_wait(changed: ReplicaRecord) -> None:
    directory = Directory()
    await directory.announce(FIRST)
    version, _ = await directory.watch(-1)
    waiting = [asyncio.create_task(directory.watch(version)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    await directory.announce(changed)
    assert await soon(asyncio.gather(*waiting)) == [(version + 1, (changed,))] * 3


async def test_repeating_oneself_wakes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "POLL_S", 0.05)
    directory = Directory()
    await directory.announce(FIRST)
    version, _ = await directory.watch(-1)
    waiting = asyncio.create_task(directory.watch(version))
    await asyncio.sleep(0)
    for _ in range(3):
        await directory.announce(replace(FIRST))
    # It answers in the end, unchanged, so that a watcher finds out if the directory is gone.
    assert await soon(waiting) == (version, (FIRST,))


async def test_a_change_between_two_watches_is_not_missed() -> None:
    directory = Directory()
    version, _ = await directory.watch(-1)
    await directory.announce(FIRST)
    await directory.withdraw(FIRST.replica_id)
    seen, records = await soon(directory.watch(version))
    assert (seen > version, records) == (True, ())


async def test_withdrawing_twice_is_one_change() -> None:
    directory = Directory()
    await directory.announce(FIRST)
    await directory.withdraw("unknown")
    await directory.withdraw(FIRST.replica_id)
    await directory.withdraw(FIRST.replica_id)
    assert (await directory.watch(-1)) == (2, ())


async def test_ingresses_announce_themselves_and_wake_nobody(clock: Clock) -> None:
    directory = Directory()
    version, _ = await directory.watch(-1)
    await directory.announce_ingress(DOOR)
    await directory.announce_ingress(replace(DOOR, ingress_id="ingress-2"))
    clock.now_s += EXPIRE_AFTER_S
    await directory.announce_ingress(replace(DOOR, phase="draining"))
    clock.now_s += 0.1
    assert await directory.ingresses() == (replace(DOOR, phase="draining"),)
    await directory.withdraw_ingress(DOOR.ingress_id)
    await directory.withdraw_ingress(DOOR.ingress_id)
    assert await directory.ingresses() == ()
    assert await directory.watch(-1) == (version, ())


async def test_an_absent_directory_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "ANSWER_S", 0.05)

    async def fails() -> None:
        raise RayActorError

    assert await soon(told(Directory().announce(FIRST)))
    assert not await soon(told(asyncio.get_running_loop().create_future()))
    assert not await soon(told(fails()))


async def test_the_secret_of_the_links() -> None:
    assert await Directory("secret").token() == "secret"


async def test_silent_replicas_expire(clock: Clock) -> None:
    directory = Directory()
    await directory.announce(FIRST)
    await directory.announce(SECOND)
    version, _ = await directory.watch(-1)
    clock.now_s += EXPIRE_AFTER_S
    assert await directory.list() == (FIRST, SECOND)
    await directory.announce(SECOND)
    clock.now_s += 0.1
    assert await directory.list() == (SECOND,)
    assert await soon(directory.watch(version)) == (version + 1, (SECOND,))
    clock.now_s += EXPIRE_AFTER_S + 0.1
    assert await soon(directory.watch(version + 1)) == (version + 2, ())


async def test_a_replica_that_speaks_again_is_back(clock: Clock) -> None:
    directory = Directory()
    await directory.announce(FIRST)
    clock.now_s += EXPIRE_AFTER_S + 1
    assert await directory.list() == ()
    await directory.announce(FIRST)
    assert await directory.list() == (FIRST,)


async def test_a_lost_rank_is_given_to_one_ingress_alone() -> None:
    directory = Directory()
    first, second = (RankReport(rank, 0, rank, "node", "10.0.0.1", 100 + rank, "cpu:0") for rank in range(2))
    await directory.lose_rank("model", first)
    await directory.lose_rank("model", second)
    await directory.withdraw("replica-1")
    assert await directory.take_losses() == (("model", first), ("model", second))
    assert await directory.take_losses() == ()


async def test_left_groups_are_looked_for_while_replicas_announce_themselves() -> None:
    looks: list[int] = []

    def sweep() -> int:
        looks.append(1)
        if len(looks) == 1:
            raise RuntimeError("Ray is away")
        return 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory_module, "SWEEP_EVERY_S", 0.001)
        directory = Directory(sweep=sweep)
        assert not looks
        await directory.announce(FIRST)
        await until(lambda: len(looks) > 2)
        directory.close()
