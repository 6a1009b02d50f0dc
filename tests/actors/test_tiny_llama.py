"""Llama 3.1's own token path: vocabulary, 8 KV heads and stretched rope, on a tiny random-weight model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest

from cluster.local import LocalCluster
from deployments.client import Client
from deployments.config import checkpoint_dir
from llama31.checkpoint import prepare_tiny
from llama31.specs import get_spec
from tests.actors.reference import compare, greedy_reference
from tests.serving import greedy, greedy_ids, served

pytestmark = pytest.mark.vllm

MODEL = "tiny-llama31"
# Past the 8,192 positions that the rotary frequencies were stretched from.
LONG_PROMPT_TOKENS = 16_000


@pytest.mark.timeout(300)
def test_llama31_codec_and_rope_through_vllm(ray_cluster: LocalCluster, tmp_path: Path) -> None:
    checkpoint = prepare_tiny(tmp_path / MODEL, get_spec(MODEL), lambda line: None)
    random = Random(31)
    prompts = [tuple(random.randrange(128_000) for _ in range(length)) for length in (64, LONG_PROMPT_TOKENS)]
    references = greedy_reference(checkpoint, prompts, 16)
    overrides = {
        "model": MODEL,
        "plan": "tp2",
        "engine.checkpoint": str(checkpoint),
        "engine.max_model_tokens": 32_768,
        "engine.max_batched_tokens": 4096,
    }
    with served(overrides) as (_, address):
        answers = asyncio.run(ask_all(address, prompts))
        prompt_tokens = asyncio.run(chat_once(address))
    near_ties = sum(compare(reference, answer) for reference, answer in zip(references, answers, strict=True))
    print(f"{near_ties} of {len(prompts)} answers left the reference at a near-tie")
    # <|begin_of_text|>, header (3), "\n\n", "hi", <|eot_id|>, header (3), "\n\n"
    assert prompt_tokens == 11


@pytest.mark.timeout(300)
def test_random_weights_need_no_checkpoint(ray_cluster: LocalCluster) -> None:
    overrides = {"model": MODEL, "plan": "tp1", "engine.weights": "dummy", "engine.max_model_tokens": 2048}
    with served(overrides) as (config, address):
        assert asyncio.run(chat_once(address)) == 11
    assert not list(checkpoint_dir(config).glob("*.safetensors"))


async def ask_all(address: str, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    return [await greedy_ids(address, MODEL, prompt, 16) for prompt in prompts]


async def chat_once(address: str) -> int:
    """Random weights say anything; what counts is that it is decoded and counted."""
    async with Client(address) as client:
        stream = client.chat("hi", options=greedy(8))
        await stream.text()
    assert stream.usage is not None
    assert stream.usage.output_tokens <= 8
    return stream.usage.prompt_tokens
