"""Is a sharded model the same function? Greedy ids of every plan against plain transformers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from cluster.local import LocalCluster
from deployments.config import checkpoint_dir, load_config
from llama31.checkpoint import UNPADDED
from llama31.codec import load_codec
from llama31.v1 import completion_service_pb2 as pb
from llama31.v1 import completion_service_pb2_grpc as pb_grpc
from tests.actors.reference import Continuation, compare, greedy_reference
from tests.serving import ready_records, served

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("standin_checkpoint")]

TOKENS = 64
PROMPT_LENGTHS = tuple(round(5 + index * 495 / 19) for index in range(20))
LICENSE = Path(__file__).resolve().parents[2] / "LICENSE"


@dataclass(frozen=True)
class Question:
    """One prompt and what the unpadded model says to it in float32."""

    prompt: tuple[int, ...]
    reference: Continuation


@pytest.fixture(scope="session")
def questions(standin_checkpoint: Path) -> list[Question]:
    """Slices of a text, 5 to 500 tokens long."""
    ids = load_codec("chatml", standin_checkpoint).tokenizer.encode(LICENSE.read_text())
    prompts = [tuple(ids[index * 97 : index * 97 + length]) for index, length in enumerate(PROMPT_LENGTHS)]
    references = greedy_reference(standin_checkpoint / UNPADDED, prompts, TOKENS)
    return [Question(prompt, reference) for prompt, reference in zip(prompts, references, strict=True)]


async def ask(address: str, model: str, prompt: tuple[int, ...]) -> list[int]:
    async with grpc.aio.insecure_channel(address) as channel:
        spec = pb.CompletionSpec(model=model, tokens=pb.TokenIds(ids=prompt))
        spec.sampling.temperature = 0
        spec.stop.max_output_tokens = TOKENS
        spec.stop.ignore_eos = True
        spec.returns.token_ids = True
        response = await pb_grpc.CompletionServiceStub(channel).Complete(pb.CompleteRequest(spec=spec))
    return list(response.choices[0].tokens.ids)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("plan", ["tp1", "tp2", "pp2", "tp2pp2"])
def test_greedy_ids_equal_the_unsharded_reference(
    ray_cluster: LocalCluster, questions: list[Question], plan: str
) -> None:
    with served({"plan": plan}) as (config, address):
        (record,) = ready_records()

        async def ask_all() -> list[list[int]]:
            return await asyncio.gather(*(ask(address, config.model, question.prompt) for question in questions))

        answers = asyncio.run(ask_all())
    near_ties = 0
    for question, answer in zip(questions, answers, strict=True):
        near_ties += compare(question.reference, answer)
    print(f"{plan}: {near_ties} of {len(questions)} answers left the reference at a near-tie")
    assert near_ties <= 1, "float32 leaves the reference at most in one near-tie"
    tp, pp = config.parallel_plan.tp, config.parallel_plan.pp
    assert [(r.rank, r.stage, r.tp_rank) for r in record.ranks] == [
        (rank, rank // tp, rank % tp) for rank in range(tp * pp)
    ]
    for stage in range(pp):
        assert len({r.node_id for r in record.ranks if r.stage == stage}) == 1
    if plan == "tp2pp2":
        assert len({r.node_id for r in record.ranks}) == 2, "two nodes of two GPUs: one stage each"
    assert checkpoint_dir(load_config("standin")).exists()
