"""Does the queue of an ingress let requests in as the policy says, and forget those that nobody waits for?"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from replica import MODEL, engine_request, process_metrics, sample

from cluster.policy import ReplicaSnapshot, StepSpeed
from deployments.admission import Admission, Ticket
from deployments.call import Call, ModelState
from deployments.choices import Job
from deployments.policies.admission import FairAdmission
from deployments.room import EngineBounds, Room
from deployments.tenant import LOCAL, Tenant
from llama31.chat import GenerationOptions, Priority, StopChoices
from llama31.errors import ContextTooLong, DeadlineExceeded, NoReadyReplica, Overloaded
from tests.waiting import soon, until

READY = ReplicaSnapshot("r1", True, False, 0, 0, 0, 0, 1000, 0)


@dataclass
class Replicas:
    """A fleet that a test changes."""

    ready: tuple[ReplicaSnapshot, ...] = (READY,)
    phase: ModelState = "ready"
    version: int = 0

    def snapshots(self) -> tuple[ReplicaSnapshot, ...]:
        return self.ready

    def state(self) -> ModelState:
        return self.phase

    def become(self, *ready: ReplicaSnapshot) -> None:
        self.ready, self.version = ready, self.version + 1


@contextmanager
def admission(
    fleet: Replicas | None = None,
    share: float = 1.0,
    max_running: int = 100,
    hold_s: float = 30.0,
    slo_ttft_s: float = math.inf,
) -> Iterator[Admission]:
    """One that is empty again at the end."""
    room = Room(fleet or Replicas(), EngineBounds(max_running, 1000), lambda: share)
    queue = Admission(MODEL, room, process_metrics(), FairAdmission(hold_s), slo_ttft_s)
    yield queue
    assert (len(queue), room.kv_tokens, room.demand(0)) == (0, 0, (0.0, 0.0))


def job(
    name: str,
    prompt: int = 100,
    output: int = 100,
    tenant: str = "acme",
    priority: Priority = Priority.STANDARD,
    deadline_in_s: float | None = None,
    choices: int = 1,
) -> Job:
    deadline_s = None if deadline_in_s is None else asyncio.get_running_loop().time() + deadline_in_s
    request = engine_request(name, range(prompt), output, priority=priority.value)
    options = GenerationOptions(num_choices=choices, stop=StopChoices(max_output_tokens=output))
    return Job(Call(name, deadline_s, replace(LOCAL, name=tenant)), options, request, 0.0, False)


async def test_enters_at_once_where_there_is_room() -> None:
    with admission() as queue:
        entering = queue.enter(job("a"))
        with pytest.raises(StopIteration) as entered:
            entering.send(None)
        ticket: Ticket = entered.value.value
        ticket.progress(False)
        ticket.leave(100)
        ticket.leave(100)


async def test_waits_for_room_and_the_lowest_counter_is_next() -> None:
    with admission() as queue:
        first = [await queue.enter(job(f"a{i}", tenant="flood")) for i in range(5)]
        flood = [asyncio.create_task(queue.enter(job(f"b{i}", tenant="flood"))) for i in range(5)]
        await until(lambda: len(queue) == 5)
        light = asyncio.create_task(queue.enter(job("light", tenant="light")))
        await until(lambda: len(queue) == 6)
        labels = {"model": MODEL, "priority": "standard"}
        assert sample("llama31_admission_waiting", **labels) == 6
        first.pop().leave(100)
        ticket = await soon(light)
        assert not any(task.done() for task in flood)
        for inside in (*first, ticket):
            inside.leave(100)
        for task in flood:
            (await soon(task)).leave(100)
        assert sample("llama31_admission_waiting", **labels) == 0


async def test_priorities() -> None:
    with admission() as queue:
        inside = await queue.enter(job("a", 900))
        tasks = {
            level: asyncio.create_task(queue.enter(job(level.name, 900, priority=level)))
            for level in reversed(Priority)
        }
        await until(lambda: len(queue) == 3)
        for level in Priority:
            inside.leave(1)
            inside = await soon(tasks[level])
        inside.leave(1)


async def test_whoever_cannot_be_on_time_waits_behind_those_that_can() -> None:
    speed = StepSpeed(0.0, 0.01, 0.0, 0.0, 1000)
    with admission(Replicas((replace(READY, speed=speed),)), slo_ttft_s=10.0) as queue:
        inside = await queue.enter(job("a", 900))
        inside.progress(False)
        # Of 900 tokens the first token takes 9 s, of 300 it takes 3 s; the room is for one of them.
        line = {"late": 900, "first": 300, "second": 300, "later": 900}
        tasks = {name: asyncio.create_task(queue.enter(job(name, prompt, 600))) for name, prompt in line.items()}
        await until(lambda: len(queue) == 4)
        inside.leave(1)
        for name in ("first", "second", "late", "later"):
            ticket = await soon(tasks.pop(name))
            assert not any(task.done() for task in tasks.values())
            ticket.leave(1)


async def test_nobody_yields_while_no_replica_is_there_and_the_oldest_is_refused_in_time() -> None:
    with admission(Replicas((), "loading"), hold_s=0.05, slo_ttft_s=0.01) as queue:
        tasks = [asyncio.create_task(queue.enter(job(f"a{i}"))) for i in range(2)]
        for task in tasks:
            with pytest.raises(NoReadyReplica):
                await soon(task)


async def test_room_is_also_sequences_and_prompts_on_their_way() -> None:
    with admission(max_running=2) as queue:
        both = await queue.enter(job("a", 10, 10, choices=2))
        waiting = asyncio.create_task(queue.enter(job("b", 10, 10)))
        await until(lambda: len(queue) == 1)
        both.leave(2)
        (await soon(waiting)).leave(1)
    with admission(Replicas((replace(READY, kv_tokens_total=100_000),))) as queue:
        # More than a step and a half of 1,000 tokens is on its way; the next prompt waits for a first token.
        sent = [await queue.enter(job(f"p{i}", 800)) for i in range(2)]
        waiting = asyncio.create_task(queue.enter(job("c")))
        await until(lambda: len(queue) == 1)
        sent[0].progress(False)
        tickets = [*sent, await soon(waiting)]
        for ticket in tickets:
            ticket.leave(1)


async def test_the_end_of_all_sequences_frees_the_room_before_anybody_has_read_it() -> None:
    with admission(max_running=2) as queue:
        both = await queue.enter(job("a", 10, 10, choices=2))
        waiting = asyncio.create_task(queue.enter(job("b", 10, 10)))
        await until(lambda: len(queue) == 1)
        both.progress(True)
        assert len(queue) == 1
        both.progress(True)
        assert len(queue) == 0
        (await soon(waiting)).leave(1)
        both.leave(2)


async def test_larger_than_the_room_enters_alone() -> None:
    with admission(share=0.1) as queue:
        alone = await soon(queue.enter(job("a", 800, 100)))
        waiting = asyncio.create_task(queue.enter(job("b", 800, 100)))
        await until(lambda: len(queue) == 1)
        alone.leave(1)
        (await soon(waiting)).leave(1)


async def test_larger_than_a_replica_is_refused() -> None:
    with admission() as queue:
        with pytest.raises(ContextTooLong) as refused:
            await queue.enter(job("a", 1000, 10))
        assert refused.value.limit_tokens == 1000
        assert sample("llama31_admission_refused_total", model=MODEL, reason="too_large") >= 1


async def test_whoever_leaves_the_queue_is_forgotten() -> None:
    with admission() as queue:
        inside = await queue.enter(job("a", 900))
        quitter = asyncio.create_task(queue.enter(job("b", 900)))
        late = asyncio.create_task(queue.enter(job("c", 900, deadline_in_s=0.02)))
        patient = asyncio.create_task(queue.enter(job("d", 900)))
        await until(lambda: len(queue) == 3)
        quitter.cancel()
        with pytest.raises(DeadlineExceeded, match="the queue"):
            await soon(late)
        inside.leave(1)
        (await soon(patient)).leave(1)
        assert quitter.cancelled()


async def test_cancelled_in_the_moment_of_entering() -> None:
    with admission() as queue:
        inside = await queue.enter(job("a", 900))
        unlucky = asyncio.create_task(queue.enter(job("b", 900)))
        await until(lambda: len(queue) == 1)
        inside.leave(1)
        unlucky.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unlucky


async def test_a_whole_queue_of_the_cancelled_in_between() -> None:
    with admission() as queue:
        inside = await queue.enter(job("a", 900))
        tasks = [asyncio.create_task(queue.enter(job(f"b{i}", 900))) for i in range(5)]
        await until(lambda: len(queue) == 5)
        for index in (1, 2, 4):
            tasks[index].cancel()
        await until(lambda: len(queue) == 2)
        inside.leave(1)
        for index in (0, 3):
            (await soon(tasks[index])).leave(1)


async def test_held_until_the_first_replica_is_ready() -> None:
    fleet = Replicas((), "loading")
    with admission(fleet) as queue:
        waiting = asyncio.create_task(queue.enter(job("a")))
        await until(lambda: len(queue) == 1)
        fleet.become(READY)
        (await soon(waiting)).leave(1)


@pytest.mark.parametrize(("phase", "hold_s"), [("unavailable", 30.0), ("loading", 0.02)])
async def test_without_a_replica(phase: ModelState, hold_s: float) -> None:
    with admission(Replicas((), phase), hold_s=hold_s) as queue:
        with pytest.raises(NoReadyReplica) as refused:
            await soon(queue.enter(job("a")))
        assert refused.value.phase == phase


async def test_a_deadline_that_cannot_be_met() -> None:
    speed = StepSpeed(0.01, 0.001, 0.0, 0.0, 1000)
    busy = replace(READY, speed=speed, prefill_tokens=10_000)
    with admission(Replicas((busy,))) as queue:
        with pytest.raises(Overloaded, match="the deadline cannot be met now; try again in 10 s") as refused:
            await queue.enter(job("a", output=10, deadline_in_s=2.0))
        assert refused.value.retry_after_s == pytest.approx(10.0)
        with pytest.raises(DeadlineExceeded, match="on an idle replica, too"):
            await queue.enter(job("b", output=100, deadline_in_s=0.5))
        (await queue.enter(job("c", output=10, deadline_in_s=30.0))).leave(1)


async def test_the_newest_of_a_queue_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.room.ENTERED_SPEAKS_S", 0.0)
    monkeypatch.setattr("deployments.policies.admission.MAX_WAIT_S", (0.0,) * 3)
    refused_before = sample("llama31_admission_refused_total", model=MODEL, reason="queue_full")
    with admission() as queue:
        inside = await queue.enter(job("a", 900))
        tasks = [asyncio.create_task(queue.enter(job(f"b{i}", 900))) for i in range(2)]
        await until(lambda: len(queue) == 2)
        inside.leave(1)
        inside = await soon(tasks[0])
        # One has entered while others waited: now there is a pace to reckon with.
        with pytest.raises(Overloaded, match="would wait too long; try again in"):
            await soon(queue.enter(job("c", 900)))
        other = asyncio.create_task(queue.enter(job("d", 900, tenant="other")))
        await until(lambda: len(queue) == 2)
        inside.leave(1)
        for task in (other, tasks[1]):
            (await soon(task)).leave(1)
    assert sample("llama31_admission_refused_total", model=MODEL, reason="queue_full") == refused_before + 1


async def test_a_replica_that_has_not_reported_yet_has_room() -> None:
    with admission(Replicas((replace(READY, kv_tokens_total=0),))) as queue:
        for ticket in [await soon(queue.enter(job(f"a{i}"))) for i in range(10)]:
            ticket.leave(1)


async def test_forecast_follows_the_tenants_answers() -> None:
    with admission(Replicas((replace(READY, kv_tokens_total=1 << 20),))) as queue:
        for _ in range(100):
            (await queue.enter(job("a", 10, 4000))).leave(20)
        ticket = await queue.enter(job("a", 10, 4000))
        assert ticket.place.request.expected_output_tokens < 30
        other = await queue.enter(job("b", 10, 4000, tenant="other"))
        assert other.place.request.expected_output_tokens == 256
        assert queue.demand() == pytest.approx((0.02, 0.02))
        ticket.leave(1)
        other.leave(1)


def test_tenants_have_weights() -> None:
    assert Tenant("acme").weight == 1.0
