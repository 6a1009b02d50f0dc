"""Does a sequence that is cancelled before its first turn end like any other? Needs no engine process."""

from __future__ import annotations

from pathlib import Path

from llama31.chat import FinishReason
from llama31.engine import EngineRequest, Limits, Sampling
from llama31.parallel import ParallelPlan
from llama31.vllm_engine import VllmEngine, VllmSettings
from tests.waiting import soon


async def test_a_cancel_in_the_same_message_leaves_nothing() -> None:
    settings = VllmSettings(Path("/nowhere"), ParallelPlan(), "float32", "cpu", 1000, 8, 512)
    engine = VllmEngine(settings, None, "127.0.0.1", lambda report, phase: None)  # type: ignore[arg-type]
    engine.submit(EngineRequest("a", tuple(range(500)), Sampling(), Limits(8)))
    engine.cancel("a")
    (output,) = await soon(engine.next_step())
    assert (output.request_id, output.finish_reason) == ("a", FinishReason.ABORTED)
    assert engine.state().prefill_tokens == engine.state().waiting_prompt_tokens == 0
