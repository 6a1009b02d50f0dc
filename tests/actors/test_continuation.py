"""Does a sequence that goes on from emitted tokens end as the undisturbed one does? On the real engine, in float32."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.local import LocalCluster
from deployments.app import STAND_IN_ENVIRONMENT
from llama31.chat import Grammar, JsonSchema, OneOf, Regex
from llama31.codec import load_codec
from llama31.engine import EngineRequest, Limits, Sampling
from llama31.parallel import ParallelPlan
from tests.actors.test_engine import Collector, running_engine

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

TOKENS = 40
SCHEMA = """{"type": "object", "properties": {"name": {"type": "string", "maxLength": 12},
"age": {"type": "integer"}, "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 2}},
"required": ["name", "age", "tags"], "additionalProperties": false}"""
SEEDED = Sampling(temperature=1.0, seed=7)
PENALTIES = Sampling(presence_penalty=0.7, frequency_penalty=0.9, repetition_penalty=1.3)
END = 2


def cases(prompt: tuple[int, ...]) -> dict[str, EngineRequest]:
    """One request of each kind whose state has to come along."""
    plain = EngineRequest("", prompt, Sampling(), Limits(TOKENS, ignore_eos=True))
    ends = Limits(TOKENS, stop_token_ids=(END,))
    return {
        "greedy": plain,
        "seeded": replace(plain, sampling=SEEDED),
        "seeded top-k and top-p": replace(plain, sampling=replace(SEEDED, top_k=40, top_p=0.9)),
        "penalties": replace(plain, sampling=PENALTIES),
        "seeded penalties": replace(plain, sampling=replace(PENALTIES, temperature=0.8, seed=2**64 - 1)),
        "minimum": replace(plain, limits=replace(ends, min_output_tokens=TOKENS - 5)),
        "logprobs": replace(plain, top_logprobs=3),
        "JSON schema": replace(plain, limits=ends, constraint=JsonSchema(SCHEMA)),
        "seeded JSON schema": replace(plain, limits=ends, constraint=JsonSchema(SCHEMA), sampling=SEEDED),
        "regex": replace(plain, limits=ends, constraint=Regex("[a-f]{10,30}-[0-9]{4}")),
        "grammar": replace(plain, limits=ends, constraint=Grammar('start: ("ab" | "cd"){4,20}')),
        "one of": replace(plain, limits=ends, constraint=OneOf(("the first of them", "the second of them"))),
        "prompt read in two steps": replace(plain, prompt_token_ids=prompt * 6),
        "seeded, prompt read in two steps": replace(plain, prompt_token_ids=prompt * 6, sampling=SEEDED),
    }


def seams(length: int) -> tuple[int, ...]:
    """Where the first replica is lost: after the first token, in the middle, before the last."""
    return tuple(sorted({k for k in (1, length // 3, length // 2, length - 1) if 0 < k < length}))


@pytest.mark.parametrize("plan", [ParallelPlan(pp=2), ParallelPlan(tp=2)], ids=str)
def test_what_follows_is_what_would_have_followed(
    plan: ParallelPlan, ray_cluster: LocalCluster, standin_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in STAND_IN_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    text = "Write one line of JSON about a person, please. " * 5
    prompt = tuple(load_codec("chatml", standin_checkpoint).tokenizer.encode(text))

    async def look() -> dict[str, str]:
        async with running_engine(standin_checkpoint, plan) as engine:
            steps = Collector(engine)
            requests = cases(prompt)
            for name, request in requests.items():
                engine.submit(replace(request, request_id=name))
            await steps.until(lambda: all(steps.last(name) for name in requests))
            continued = {}
            for name, request in requests.items():
                whole = steps.ids(name)
                assert len(whole) > 3, (name, steps.last(name))
                for seam in seams(len(whole)):
                    again = replace(request, request_id=f"{name}, {seam}", output_token_ids=whole[:seam])
                    engine.submit(again)
                    continued[again.request_id] = (name, seam)
            await steps.until(lambda: all(steps.last(key) for key in continued))
            steps.close()
            wrong = {}
            for key, (name, seam) in continued.items():
                expected = steps.ids(name)[seam:]
                if steps.ids(key) != expected or steps.last(key).finish_reason != steps.last(name).finish_reason:
                    wrong[key] = f"{steps.ids(key)} is not {expected}; {steps.last(key)} {steps.last(name)}"
                elif name == "logprobs":
                    first = [p for o in steps.outputs[name] for p in o.tokens.top_logprobs][seam * 3 :]
                    second = [p for o in steps.outputs[key] for p in o.tokens.top_logprobs]
                    assert second == pytest.approx(first, abs=1e-4)
            return wrong

    assert asyncio.run(look()) == {}
