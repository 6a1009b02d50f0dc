"""Is a sharded model the same function, and what happens when one of its ranks dies?

Greedy ids of every plan against plain transformers, then kill -9 of a rank on the second node.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cluster.local import LocalCluster
from deployments.client import Client
from deployments.config import ServiceConfig
from deployments.directory import ReplicaRecord
from llama31.checkpoint import UNPADDED
from llama31.codec import load_codec
from tests.actors.reference import Continuation, compare, greedy_reference
from tests.serving import greedy, greedy_ids, ready_records, served, wait_answering, wait_for

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("standin_checkpoint"), pytest.mark.timeout(600)]

TOKENS = 64
PROMPT_LENGTHS = tuple(round(5 + index * 495 / 19) for index in range(20))
LICENSE = Path(__file__).resolve().parents[2] / "LICENSE"
# A closed socket tells of a dead rank at once; the rest is for a busy machine.
LOSS_IS_KNOWN_S = 10.0
GANG_IS_BACK_S = 180.0


@dataclass(frozen=True)
class Question:
    """One prompt and what the unpadded model says to it in float32."""

    prompt: tuple[int, ...]
    reference: Continuation


@dataclass(frozen=True)
class Sharded:
    """A running service and the one replica that it started with."""

    config: ServiceConfig
    address: str
    record: ReplicaRecord


@pytest.fixture(scope="module")
def questions(standin_checkpoint: Path) -> list[Question]:
    """Slices of a text, 5 to 500 tokens long."""
    ids = load_codec("chatml", standin_checkpoint).tokenizer.encode(LICENSE.read_text())
    prompts = [tuple(ids[index * 97 : index * 97 + length]) for index, length in enumerate(PROMPT_LENGTHS)]
    references = greedy_reference(standin_checkpoint / UNPADDED, prompts, TOKENS)
    return [Question(prompt, reference) for prompt, reference in zip(prompts, references, strict=True)]


@pytest.fixture(scope="module")
def sharded(request: pytest.FixtureRequest, ray_cluster: LocalCluster) -> Iterator[Sharded]:
    """The stand-in under the plan that the test asks for."""
    with served({"plan": request.param}) as (config, address):
        (record,) = ready_records()
        yield Sharded(config, address, record)


@pytest.mark.parametrize("sharded", ["tp1", "tp2", "pp2", "tp2pp2"], indirect=True)
def test_greedy_ids_equal_the_unsharded_reference(sharded: Sharded, questions: list[Question]) -> None:
    async def ask_all() -> list[list[int]]:
        model = sharded.config.model
        return await asyncio.gather(*(greedy_ids(sharded.address, model, q.prompt, TOKENS) for q in questions))

    answers = asyncio.run(ask_all())
    near_ties = 0
    for question, answer in zip(questions, answers, strict=True):
        near_ties += compare(question.reference, answer)
    print(f"{sharded.config.plan}: {near_ties} of {len(questions)} answers left the reference at a near-tie")
    assert near_ties <= 1, "float32 leaves the reference at most in one near-tie"


@pytest.mark.parametrize("sharded", ["tp1", "tp2", "pp2", "tp2pp2"], indirect=True)
def test_ranks_landed_as_planned(sharded: Sharded) -> None:
    tp, pp = sharded.config.parallel_plan.tp, sharded.config.parallel_plan.pp
    ranks = sharded.record.ranks
    assert [(r.rank, r.stage, r.tp_rank) for r in ranks] == [(rank, rank // tp, rank % tp) for rank in range(tp * pp)]
    for stage in range(pp):
        assert len({r.node_id for r in ranks if r.stage == stage}) == 1
    if sharded.config.plan == "tp2pp2":
        assert len({r.node_id for r in ranks}) == 2, "two nodes of two GPUs: one stage each"


@pytest.mark.parametrize("sharded", ["tp2pp2"], indirect=True)
async def test_a_stream_waits_out_a_killed_rank_and_the_whole_gang_is_rebuilt(sharded: Sharded) -> None:
    """The one replica there is: its stream goes on, from the token it had, in the gang that takes its place."""
    replica_node = sharded.record.ranks[0].node_id
    victim = next(rank for rank in sharded.record.ranks if rank.node_id != replica_node)
    async with Client(sharded.address) as client:
        options = greedy(200, ignore_eos=True)
        undisturbed = await client.chat("Count from one to a thousand.", options=options).text()
        stream = client.chat("Count from one to a thousand.", options=options)
        first = await anext(stream)
        os.kill(victim.pid, signal.SIGKILL)
        answer = asyncio.create_task(stream.text())
        await asyncio.to_thread(wait_for, lambda: not ready_records(), LOSS_IS_KNOWN_S, "the loss is known")
        async with asyncio.timeout(GANG_IS_BACK_S):
            rest = await answer
        assert first + rest == undisturbed
        assert stream.result.usage.output_tokens == 200

    def rebuilt() -> ReplicaRecord | None:
        return next((r for r in ready_records() if r.incarnation != sharded.record.incarnation), None)

    record = await asyncio.to_thread(wait_for, rebuilt, GANG_IS_BACK_S, "another replica is ready")
    assert len(record.ranks) == 4
    assert not {r.pid for r in record.ranks} & {r.pid for r in sharded.record.ranks}
    await wait_answering(sharded.address, 30)
    assert not any(psutil.pid_exists(rank.pid) for rank in sharded.record.ranks), "no rank of the old gang lives"
