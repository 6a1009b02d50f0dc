"""The vLLM engine by itself, on two pipeline stages of the session's cluster: cancel, counters, sampling."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from cluster.local import LocalCluster
from deployments.app import STAND_IN_ENVIRONMENT
from llama31.chat import FinishReason, TokenColumns
from llama31.engine import EngineOutput, EngineRequest, EngineState, Limits, Sampling
from llama31.errors import DuplicateRequest
from llama31.parallel import ParallelPlan
from llama31.vllm_engine import VllmEngine, VllmSettings
from tests.actors.blocked_writer import front_door
from tests.bad_inputs import http2

pytestmark = pytest.mark.vllm

PLAN = ParallelPlan(tp=1, pp=2)
PROMPT = tuple(range(1000, 1300))


@asynccontextmanager
async def running_engine(checkpoint: Path, plan: ParallelPlan = PLAN) -> AsyncIterator[VllmEngine]:
    """An engine of this process, with its ranks on the session's cluster."""
    group = placement_group([{"GPU": 1, "CPU": 0.5}] * plan.world_size, strategy="PACK")
    ray.get(group.ready(), timeout=30)
    settings = VllmSettings(
        checkpoint=checkpoint,
        plan=plan,
        dtype="float32",
        device="cpu",
        max_model_tokens=2048,
        max_running=8,
        max_batched_tokens=1024,
        kv_cache_bytes=128 << 20,
        eager=True,
    )
    engine = VllmEngine(settings, group, ray.util.get_node_ip_address(), lambda report, phase: None)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()
        remove_placement_group(group)


class Collector:
    """Reads the engine's steps into one list of outputs a request."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine
        self.outputs: dict[str, list[EngineOutput]] = defaultdict(list)
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            for output in await self._engine.next_step():
                self.outputs[output.request_id].append(output)

    def ids(self, request_id: str) -> list[int]:
        return [token for output in self.outputs[request_id] for token in output.tokens.ids]

    def last(self, request_id: str) -> EngineOutput | None:
        outputs = self.outputs[request_id]
        return outputs[-1] if outputs and outputs[-1].is_last else None

    async def until(self, condition: object) -> None:
        async with asyncio.timeout(120):
            while not condition():  # type: ignore[operator]
                await asyncio.sleep(0.005)

    def close(self) -> None:
        self._task.cancel()


def request(name: str, tokens: int, sampling: Sampling | None = None, **limits: object) -> EngineRequest:
    return EngineRequest(
        request_id=name,
        prompt_token_ids=PROMPT,
        sampling=sampling or Sampling(),
        limits=Limits(max_output_tokens=tokens, ignore_eos=True, **limits),  # type: ignore[arg-type]
    )


@pytest.mark.timeout(400)
def test_engine_on_two_stages(
    ray_cluster: LocalCluster, standin_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One engine, several looks: an engine takes half a minute to load."""
    for name, value in STAND_IN_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    async def look() -> None:
        async with running_engine(standin_checkpoint) as engine:
            steps = Collector(engine)
            try:
                assert [report.stage for report in engine.ranks()] == [0, 1]
                await cancel_frees_kv(engine, steps)
                await seeds_repeat(engine, steps)
                await limits_hold(engine, steps)
                await logprobs_come(engine, steps)
                await prompts_are_scored(engine, steps)
                await refusals_leave_the_engine_up(engine, steps)
            finally:
                steps.close()
            for write_stall_s in (60.0, 0.5):
                await a_blocked_writer_frees_kv(engine, standin_checkpoint, write_stall_s)

    asyncio.run(look())


async def cancel_frees_kv(engine: VllmEngine, steps: Collector) -> None:
    """The blocks of a cancelled sequence are free within 2 x pp steps after the abort was sent."""
    engine.submit(request("stays", 200))
    engine.submit(request("goes", 1500))
    with pytest.raises(DuplicateRequest):
        engine.submit(request("goes", 5))
    await steps.until(lambda: len(steps.ids("goes")) >= 10 and len(steps.ids("stays")) >= 10)
    both = engine.state()
    assert both.running == 2
    assert both.kv_tokens_used >= 2 * 256, "300 prompt tokens are at least two full blocks of 128"
    engine.cancel("goes")
    await steps.until(lambda: steps.last("goes"))
    sent = engine.state().steps_total
    await steps.until(lambda: engine.state().running == 1)
    freed = engine.state()
    assert freed.steps_total - sent <= 2 * PLAN.pp, f"{freed.steps_total - sent} steps"
    assert freed.kv_tokens_used < both.kv_tokens_used
    last = steps.last("goes")
    assert last is not None
    assert last.finish_reason is FinishReason.ABORTED
    assert sum(output.is_last for output in steps.outputs["goes"]) == 1
    await steps.until(lambda: steps.last("stays"))
    assert len(steps.ids("stays")) == 200
    assert engine.state().kv_tokens_used == 0


async def seeds_repeat(engine: VllmEngine, steps: Collector) -> None:
    """A seed repeats a sampled answer, another seed does not."""
    for name, seed in (("seed-a", 1), ("seed-b", 1), ("seed-c", 2)):
        engine.submit(request(name, 24, Sampling(temperature=1.0, seed=seed)))
    await steps.until(lambda: all(steps.last(name) for name in ("seed-a", "seed-b", "seed-c")))
    assert steps.ids("seed-a") == steps.ids("seed-b") != steps.ids("seed-c")


async def limits_hold(engine: VllmEngine, steps: Collector) -> None:
    """A stop token ends the sequence, but not before the minimum."""
    engine.submit(request("free", 12))
    await steps.until(lambda: steps.last("free"))
    free = steps.ids("free")
    assert len(free) == 12
    stop = free[2]
    engine.submit(request("stopped", 12, stop_token_ids=(stop,)))
    engine.submit(request("later", 12, stop_token_ids=(stop,), min_output_tokens=6))
    await steps.until(lambda: steps.last("stopped") and steps.last("later"))
    assert steps.ids("stopped") == free[: free.index(stop) + 1]
    assert steps.last("stopped").finish_reason is FinishReason.END_OF_TURN  # type: ignore[union-attr]
    assert len(steps.ids("later")) >= 6


async def logprobs_come(engine: VllmEngine, steps: Collector) -> None:
    """One row a token; the greedy choice is the best of its row."""
    scored = EngineRequest("scored", PROMPT, Sampling(), Limits(8, ignore_eos=True), top_logprobs=3)
    engine.submit(scored)
    await steps.until(lambda: steps.last("scored"))
    for output in steps.outputs["scored"]:
        columns = output.tokens
        assert len(columns.logprobs) == len(columns.ids)
        assert len(columns.top_ids) == 3 * len(columns.ids)
        for row, token in enumerate(columns.ids):
            assert columns.top_ids[row * 3] == token
            assert columns.top_logprobs[row * 3] == columns.logprobs[row] <= 0


async def prompts_are_scored(engine: VllmEngine, steps: Collector) -> None:
    """A greedy answer that comes back as the end of a prompt scores as it did; the prompt is read in two steps."""
    prompt = PROMPT * 4
    assert 1024 < len(prompt) < 2048
    engine.submit(EngineRequest("answer", prompt, Sampling(), Limits(8, ignore_eos=True), top_logprobs=0))
    await steps.until(lambda: steps.last("answer"))
    ids = tuple(steps.ids("answer"))
    logprobs = [p for output in steps.outputs["answer"] for p in output.tokens.logprobs]
    scored = EngineRequest("prompt", prompt + ids, Sampling(), Limits(2, ignore_eos=True), prompt_top_logprobs=2)
    engine.submit(scored)
    await steps.until(lambda: steps.last("prompt"))
    first, *others = [output for output in steps.outputs["prompt"] if output.tokens.ids]
    assert all(output.prompt is None for output in others)
    columns = first.prompt
    assert columns is not None
    assert columns.ids == prompt + ids
    assert (columns.logprobs[0], columns.top_ids[:2], columns.top_logprobs[:2]) == (0.0, (prompt[0],) * 2, (0.0, 0.0))
    assert len(columns.logprobs) == len(columns.ids) == len(columns.top_ids) // 2 == len(columns.top_logprobs) // 2
    assert columns.top_ids[2 * len(prompt) :: 2] == ids
    assert columns.logprobs[len(prompt) :] == pytest.approx(logprobs, abs=1e-3)
    assert first.cached_prompt_tokens == 0


async def refusals_leave_the_engine_up(engine: VllmEngine, steps: Collector) -> None:
    """What vLLM itself does not take is told as the request's fault, without its words."""
    engine.submit(request("refused", 8, Sampling(temperature=-1.0)))
    await steps.until(lambda: steps.last("refused"))
    assert steps.last("refused") == EngineOutput(
        "refused", TokenColumns(), refusal="the engine does not take it: look at temperature"
    )
    long = EngineRequest("long", PROMPT * 8, Sampling(), Limits(8))
    engine.submit(long)
    await steps.until(lambda: steps.last("long"))
    assert steps.last("long").refusal.startswith("the engine does not take it")  # type: ignore[union-attr]
    engine.submit(request("after", 2))
    await steps.until(lambda: steps.last("after"))
    assert len(steps.ids("after")) == 2
    assert engine.state().running == 0


async def a_blocked_writer_frees_kv(engine: VllmEngine, checkpoint: Path, write_stall_s: float) -> None:
    """Through both servers: a client that reads nothing cancels, or is noticed; 2 x pp steps later its KV is free."""

    async def running(sequences: int) -> EngineState:
        async with asyncio.timeout(60):
            while engine.state().running != sequences:
                await asyncio.sleep(0.002)
        return engine.state()

    async def freed_by(waiting: asyncio.Task[EngineState]) -> EngineState:
        await waiting
        return await running(1)

    async with front_door(engine, checkpoint, write_stall_s) as door:
        both = asyncio.create_task(running(2))
        freed = asyncio.create_task(freed_by(both))
        stays = asyncio.create_task(door.well_read(400))
        client = await door.unread(1500)
        assert both.done()
        if write_stall_s > 1:
            assert not freed.done()
            assert not door.cancelled_at_step
            await client.send(http2.frame(http2.RST_STREAM, 0, 1, (8).to_bytes(4, "big")))
        after = await freed
        (noticed,) = door.cancelled_at_step
        assert after.steps_total - noticed <= 2 * PLAN.pp, f"{after.steps_total - noticed} steps"
        assert after.kv_tokens_used < 300 + 400 + 2 * 128, "what one sequence holds"
        assert await stays == 400, "others go on"
        await client.close()
    assert engine.state().kv_tokens_used == 0
