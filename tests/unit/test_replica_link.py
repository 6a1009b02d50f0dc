"""Does an ingress keep its links: outputs merged, loss told with a count, reconnects, states for the router?"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from replica import (
    MODEL,
    STEP_S,
    TOKEN,
    Replica,
    endless,
    engine_request,
    running_fleet,
    running_replica,
    says,
)

from deployments.directory import Directory, ReplicaRecord, WorkerAddress
from deployments.fleet import Fleet
from deployments.policies.prefix_index import PrefixIndex
from deployments.replica_link import MAX_REST_S, ReplicaLink, dial_target, rest_s
from deployments.sequence_stream import SequenceStream, join_outputs
from deployments.worker_server import machine_boot_id
from llama31.chat import FinishReason, TokenColumns
from llama31.engine import EngineOutput
from llama31.errors import StreamInterrupted
from llama31.scripted_engine import Script
from tests.waiting import soon, until

SLOW = Script(answer=endless, step_s=STEP_S)
LONG = 100_000


async def read_all(stream: SequenceStream) -> tuple[list[int], EngineOutput]:
    """Every token id until the last output."""
    ids: list[int] = []
    while True:
        output = await soon(stream.next())
        ids.extend(output.tokens.ids)
        if output.is_last:
            return ids, output


async def test_a_sequence_runs_through_the_link() -> None:
    async with running_fleet(Script()) as (fleet, _, _):
        link = fleet.link("replica-1")
        stream = link.submit(engine_request("a", (7, 8, 9)), 0, 0)
        assert stream.replica_id == "replica-1"
        ids, last = await read_all(stream)
        assert (ids, last.finish_reason) == ([7, 8, 9], FinishReason.END_OF_TURN)
        assert link.snapshot().outstanding_tokens == 0


async def test_outputs_are_merged_while_nobody_reads() -> None:
    async with running_fleet(Script(answer=says(*range(10, 110)))) as (fleet, _, _):
        stream = fleet.link("replica-1").submit(engine_request("a", max_output_tokens=200), 0, 0)
        await until(lambda: stream.received_tokens == 100)
        await until(lambda: fleet.snapshots()[0].outstanding_tokens == 0)
        output = await soon(stream.next())
        assert output.tokens.ids == tuple(range(10, 110))
        assert output.finish_reason is FinishReason.END_OF_TURN


async def test_outstanding_tokens_are_known_before_the_replica_tells() -> None:
    async with running_fleet(SLOW) as (fleet, _, (replica,)):
        link = fleet.link("replica-1")
        first = link.submit(engine_request("a", (1, 2, 3), 1000), 0, 0)
        link.submit(engine_request("b", (1, 2), 500), 0, 0)
        assert fleet.snapshots()[0].outstanding_tokens == 1003 + 502
        await until(lambda: replica.engine.state().running == 2)
        first.cancel()
        first.cancel()
        assert fleet.snapshots()[0].outstanding_tokens == 502
        await until(lambda: replica.engine.state().running == 1)


class NotCounted(dict[str, SequenceStream]):
    """Streams that nobody may go through one by one."""

    def values(self) -> Any:
        raise AssertionError


async def test_no_submit_looks_at_every_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_fleet(SLOW) as (fleet, _, _):
        monkeypatch.setattr(fleet.link("replica-1"), "_streams", NotCounted())
        for number in range(3):
            fleet.link("replica-1").submit(engine_request(str(number), (1, 2), 500), 0, 0)
            assert [s.outstanding_tokens for s in fleet.snapshots()] == [502 * (number + 1)]
        monkeypatch.setattr(ReplicaLink, "snapshot", None)
        assert fleet.ready_replicas() == 1
        monkeypatch.undo()


async def test_a_replica_that_is_gone_interrupts_with_the_count(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "llama31.link")
    async with running_fleet(SLOW) as (fleet, _, (replica,)):
        link = fleet.link("replica-1")
        read, unread = (link.submit(engine_request(name, max_output_tokens=LONG), 0, 0) for name in "ab")
        tokens = len((await soon(read.next())).tokens.ids)
        await until(lambda: unread.received_tokens > 0)
        lost_at_s = asyncio.get_running_loop().time()
        await replica.kill()
        with pytest.raises(StreamInterrupted) as caught:  # noqa: PT012  (what had arrived comes first)
            while True:
                tokens += len((await soon(read.next())).tokens.ids)
        assert asyncio.get_running_loop().time() - lost_at_s < 2.0
        assert (caught.value.replica_id, caught.value.tokens_sent) == ("replica-1", tokens)
        # What had arrived is still given out before the loss is told.
        assert len((await soon(unread.next())).tokens.ids) == unread.received_tokens
        for _ in range(2):
            with pytest.raises(StreamInterrupted):
                await soon(unread.next())
        with pytest.raises(StreamInterrupted, match="after 0 tokens"):
            await soon(link.submit(engine_request("late"), 0, 0).next())
        assert not fleet.snapshots()[0].ready
        assert link.snapshot().outstanding_tokens == 0
        assert "2 open sequences" in caplog.text


async def test_a_sequence_that_ended_outlives_the_link() -> None:
    async with running_fleet(Script(answer=says(7, 8))) as (fleet, _, (replica,)):
        stream = fleet.link("replica-1").submit(engine_request("a"), 0, 0)
        await until(lambda: fleet.snapshots()[0].outstanding_tokens == 0)
        await replica.kill()
        assert (await read_all(stream))[0] == [7, 8]


async def test_the_link_comes_back_with_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("deployments.fleet.RECONNECT_S", 0.02)
    async with running_fleet(SLOW) as (fleet, _, (replica,)):
        before = fleet.link("replica-1")
        await replica.kill()
        await until(lambda: fleet.ready_replicas() == 0)
        reborn = Replica("replica-1", Script(answer=says(7)), Path(replica.record.address.unix_path).parent)
        await reborn.start()
        await until(lambda: fleet.ready_replicas() == 1)
        assert fleet.link("replica-1") is not before
        ids, _ = await read_all(fleet.link("replica-1").submit(engine_request("b"), 0, 0))
        assert ids == [7]
        await reborn.kill()


async def test_a_directory_that_fails_keeps_the_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.fleet.DIRECTORY_RETRY_S", 0.01)
    failures = 0
    seen_versions = []

    async with running_replica() as replica:

        async def watch(seen: int) -> tuple[int, tuple[ReplicaRecord, ...]]:
            nonlocal failures
            seen_versions.append(seen)
            if len(seen_versions) == 1:
                return 5, (replica.record,)
            failures += 1
            raise ConnectionError("the directory's process is gone")

        fleet = Fleet(watch, TOKEN)
        fleet.start()
        await until(lambda: fleet.ready_replicas() == 1)
        await until(lambda: failures >= 3)
        assert fleet.ready_replicas() == 1
        assert [record.replica_id for record in fleet.records()] == ["replica-1"]
        ids, _ = await read_all(fleet.link("replica-1").submit(engine_request("a", (7,)), 0, 0))
        assert ids == [7]
        # After a failure everything is asked for anew: the directory may count from zero again.
        assert seen_versions[:4] == [-1, 5, -1, -1]
        await fleet.close()


async def test_a_new_ingress_waits_for_its_links() -> None:
    """It shares its port with others: a request must not find it without the replicas that they have."""
    directory = Directory()
    fleet = Fleet(directory.watch, TOKEN)
    fleet.start()
    await directory.announce(ReplicaRecord("replica-2", 1, MODEL, "tp1", "loading"))
    await soon(fleet.wait_linked(60))
    assert fleet.ready_replicas() == 0, "what still loads is not waited for"
    async with running_replica() as replica:
        await directory.announce(replica.record)
        await until(lambda: len(fleet.records()) == 2)
        await soon(fleet.wait_linked(60))
        assert fleet.ready_replicas() == 1
    await until(lambda: fleet.ready_replicas() == 0)
    await soon(fleet.wait_linked(0.05))
    await fleet.close()


async def test_phases_reach_the_snapshots() -> None:
    directory = Directory()
    fleet = Fleet(directory.watch, TOKEN)
    fleet.start()
    version = fleet.version
    await directory.announce(ReplicaRecord("replica-1", 1, MODEL, "tp1", "loading", "rank 1 of 2"))
    version = await soon(fleet.wait_changed(version))
    await until(lambda: fleet.records())
    assert (fleet.snapshots(), fleet.ready_replicas()) == ((), 0)
    async with running_replica(SLOW) as replica:
        await directory.announce(replica.record)
        await until(lambda: fleet.ready_replicas() == 1)
        assert await soon(fleet.wait_changed(version)) > version
        link = fleet.link("replica-1")
        link.submit(engine_request("a", max_output_tokens=30), 0, 0)
        await until(lambda: replica.engine.state().running)
        draining = asyncio.create_task(replica.worker.drain(5.0))
        await until(lambda: fleet.snapshots()[0].draining)
        assert fleet.snapshots()[0].ready
        assert fleet.ready_replicas() == 0
        await soon(draining)
        await until(lambda: not link.alive)
    await fleet.close()


async def test_a_withdrawn_replica_is_not_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.fleet.RECONNECT_S", 0.01)
    async with running_fleet(SLOW, SLOW) as (fleet, directory, (first, _)):
        await directory.withdraw("replica-1")
        await until(lambda: len(fleet.records()) == 1)
        # The connection still stands: what runs there may finish.
        assert fleet.link("replica-1").alive
        await first.kill()
        await until(lambda: [s.replica_id for s in fleet.snapshots()] == ["replica-2"])
        assert fleet.ready_replicas() == 1


async def test_a_failed_replica_is_not_called() -> None:
    async with running_fleet(SLOW) as (fleet, directory, (replica,)):
        await directory.announce(replace(replica.record, replica_id="replica-2", phase="failed"))
        await until(lambda: len(fleet.records()) == 2)
        await asyncio.sleep(0)
        assert [s.replica_id for s in fleet.snapshots()] == ["replica-1"]


async def test_wait_changed_wakes_everyone() -> None:
    async with running_fleet() as (fleet, directory, _):
        assert await soon(fleet.wait_changed(fleet.version - 1)) >= fleet.version - 1
        version = fleet.version
        waiting = [asyncio.create_task(fleet.wait_changed(version)) for _ in range(3)]
        await asyncio.sleep(0)
        await directory.announce(ReplicaRecord("replica-1", 1, MODEL, "tp1", "starting"))
        assert all(seen > version for seen in await soon(asyncio.gather(*waiting)))


async def test_the_wrong_token_never_becomes_ready(caplog: pytest.LogCaptureFixture) -> None:
    async with running_replica() as replica:
        link = ReplicaLink(replica.record, "wrong", "ingress-1", 1, PrefixIndex(8))
        stream = link.submit(engine_request("a"), 0, 0)
        await soon(link.run())
        assert not link.became_ready.is_set()
        with pytest.raises(StreamInterrupted, match="connection_lost"):
            await stream.next()
        # Which code gRPC tells depends on whether its own write or the refusal came first.
        assert re.search("connection lost: (UNAUTHENTICATED|INTERNAL)", caplog.text)


async def test_silence_is_death(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("deployments.replica_link.SILENCE_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = WorkerAddress("/nowhere", "another machine", f"127.0.0.1:{mute.getsockname()[1]}")
        link = ReplicaLink(
            ReplicaRecord("replica-1", 1, MODEL, "tp1", "ready", address=address), TOKEN, "i", 1, PrefixIndex(8)
        )
        stream = link.submit(engine_request("a"), 0, 0)
        await soon(link.run())
        with pytest.raises(StreamInterrupted, match="silent"):
            await stream.next()
        assert "no heartbeat for 0.05 s" in caplog.text


@pytest.mark.parametrize(("first_token", "words"), [(5, "token 2 was expected, token 5"), (1, "token 1 came")])
async def test_a_gap_or_a_repetition_breaks_the_stream(
    first_token: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_replica() as replica:
        stream = SequenceStream(engine_request("a"), 0, ReplicaLink(replica.record, TOKEN, "i", 1, PrefixIndex(8)))
        stream.put(0, EngineOutput("a", TokenColumns((7, 8))))
        stream.put(first_token, EngineOutput("a", TokenColumns((9,))))
        assert (await soon(stream.next())).tokens.ids == (7, 8)
        with pytest.raises(StreamInterrupted) as caught:
            await soon(stream.next())
        assert (caught.value.tokens_sent, caught.value.cause) == (2, "gap")
        assert words in caplog.text


def test_outputs_join_as_if_one_step_had_made_them() -> None:
    earlier = EngineOutput("a", TokenColumns((1, 2), (-0.1, -0.2), 1, (3, 4), (-0.3, -0.4)), None, 5, 0.25, 0.5)
    later = EngineOutput("a", TokenColumns((6,), (-0.5,), 1, (7,), (-0.6,)), FinishReason.STOP_SEQUENCE)
    assert join_outputs(earlier, later) == EngineOutput(
        "a",
        TokenColumns((1, 2, 6), (-0.1, -0.2, -0.5), 1, (3, 4, 7), (-0.3, -0.4, -0.6)),
        FinishReason.STOP_SEQUENCE,
        cached_prompt_tokens=5,
        queued_s=0.25,
        prefill_s=0.5,
    )
    failed = join_outputs(earlier, EngineOutput("a", TokenColumns(), error="lost"))
    assert (failed.tokens, failed.error) == (earlier.tokens, "lost")


def test_the_same_machine_is_reached_by_unix_socket() -> None:
    here = WorkerAddress("/run/w.sock", machine_boot_id(), "10.0.0.1:7000")
    assert dial_target(here) == "unix:/run/w.sock"
    assert dial_target(replace(here, boot_id="another")) == "10.0.0.1:7000"


@pytest.mark.parametrize(
    ("busy_s", "expected_s"),
    [(0.0, 0.0), (0.0009, 0.0), (0.004, 0.004), (0.5, MAX_REST_S)],
)
def test_a_link_rests_as_long_as_its_streams_were_busy(busy_s: float, expected_s: float) -> None:
    assert rest_s(busy_s) == expected_s
