"""Does a line through measured steps find the speed that made them, and does it say nothing too early?"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.policy import StepSpeed
from deployments.policies.step_fit import MIN_STEPS, StepFit
from llama31.engine import MeasuredStep
from llama31.prefill_work import MAX_STEPS, PrefillWork

# Of a 70B on four H100s.
TRUE = StepSpeed(0.0148, 71e-6, 30e-6, 30e-9, 8192)


def steps(speed: StepSpeed, count: int, noise: float = 0.0, seed: int = 1) -> list[MeasuredStep]:
    """As a server under changing load would measure."""
    dice = random.Random(seed)
    made = []
    for _ in range(count):
        prefill = dice.choice([0, 0, 0, 64, 900, 8192])
        running = dice.randrange(1, 200)
        context = running * dice.randrange(200, 4000)
        seconds = speed.step_s(prefill, running, context) * (1 + noise * dice.uniform(-1, 1))
        made.append(MeasuredStep(seconds, prefill, running, context))
    return made


@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 0.001), (0.2, 0.1)])
def test_the_line_is_found(noise: float, tolerance: float) -> None:
    fit = StepFit(8192)
    fit.add(steps(TRUE, 3000, noise))
    found = fit.speed()
    assert found is not None
    for shape in ((8192, 0, 0), (0, 1, 500), (0, 200, 400_000), (2048, 100, 100_000)):
        assert found.step_s(*shape) == pytest.approx(TRUE.step_s(*shape), rel=tolerance)


def test_a_change_of_pace_is_followed() -> None:
    fit, slower = StepFit(8192), replace(TRUE, fixed_s=0.05, prefill_token_s=200e-6)
    fit.add(steps(TRUE, 10_000))
    fit.add(steps(slower, 10_000, seed=2))
    found = fit.speed()
    assert found is not None
    assert found.step_s(8192, 0, 0) == pytest.approx(slower.step_s(8192, 0, 0), rel=0.1)


def test_nothing_is_said_before_enough_is_known() -> None:
    fit = StepFit(8192)
    assert fit.speed() is None
    fit.add(steps(TRUE, round(MIN_STEPS / 2)))
    assert fit.speed() is None, "too few steps"
    decodes = StepFit(8192)
    decodes.add([replace(step, prefill_tokens=0) for step in steps(TRUE, 3000)])
    assert decodes.speed() is None, "no prompt among them"


STEPS = st.builds(
    MeasuredStep, st.floats(0, 10), st.integers(0, 100_000), st.integers(0, 1000), st.integers(0, 10_000_000)
)


@settings(max_examples=50, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=20))
def test_no_share_is_negative_whatever_was_measured(measured: list[MeasuredStep]) -> None:
    fit = StepFit(8192)
    fit.add(measured * 300)
    found = fit.speed()
    if found is not None:
        assert min(found.fixed_s, found.sequence_s, found.context_token_s) >= 0
        assert found.prefill_token_s > 0


def test_work_that_is_left() -> None:
    work = PrefillWork()
    work.begin("a", 1000)
    work.begin("b", 500)
    assert work.left_tokens == 1500
    work.count_step(1.0, 800, 0, 0)
    assert work.left_tokens == 700, "a chunk is done"
    work.count_step(1.1, 300, 0, 0)
    work.end("a")
    work.end("a")
    assert work.left_tokens == 400
    work.end("b")
    assert work.left_tokens == 0
    work.begin("c", 10)
    assert work.left_tokens == 10


def test_steps_after_a_pause_are_not_measured() -> None:
    work = PrefillWork()
    work.wake()
    for now_s in (1.0, 1.5, 1.75):
        work.count_step(now_s, 0, 1, 100)
    work.wake()
    work.count_step(9.0, 0, 1, 100)
    assert work.take_steps() == (MeasuredStep(0.5, 0, 1, 100), MeasuredStep(0.25, 0, 1, 100))
    assert work.take_steps() == ()
    for now_s in range(2 * MAX_STEPS):
        work.count_step(10.0 + now_s, 0, 1, 100)
    assert len(work.take_steps()) == MAX_STEPS
