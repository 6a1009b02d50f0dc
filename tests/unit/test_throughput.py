"""Is every token of an offline run counted, in as many steps as by hand?"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.policy import StepShape, StepSpeed
from cluster.throughput import OfflineLoad, run_offline
from llama31.errors import ConfigInvalid


@dataclass
class Counted:
    """A second a step; remembers every shape."""

    kv_tokens: int
    shapes: list[StepShape] = field(default_factory=list)

    def step_s(self, shape: StepShape) -> float:
        self.shapes.append(shape)
        return 1.0

    def speed(self) -> StepSpeed:
        return StepSpeed(1.0, 0.0, 0.0, 0.0, 8)


def test_two_requests_by_hand() -> None:
    cost = Counted(kv_tokens=100)
    result = run_offline(
        cost, OfflineLoad(requests=2, prompt_tokens=6, output_tokens=3, max_running=2, max_step_tokens=8)
    )
    assert cost.shapes == [
        StepShape(8, 6 * 3 + 2 * 1, 0, 0),
        StepShape(4, 4 * (2 + 2), 1, 6),
        StepShape(0, 0.0, 2, 7 + 6),
        StepShape(0, 0.0, 1, 7),
    ]
    assert (result.seconds, result.output_tokens_s, result.running, result.steps) == (4.0, 6 / 4, 2, 4)


def test_kv_room_bounds_those_that_run() -> None:
    cost = Counted(kv_tokens=25)
    result = run_offline(cost, OfflineLoad(4, 6, 3, max_running=64, max_step_tokens=64))
    assert result.running == 2
    assert max(shape.decodes + shape.prefill_tokens / 6 for shape in cost.shapes) <= 2


def test_one_token_each_is_prefill_alone() -> None:
    cost = Counted(kv_tokens=100)
    run_offline(cost, OfflineLoad(3, 4, 1, max_running=8, max_step_tokens=4))
    assert [shape.decodes for shape in cost.shapes] == [0, 0, 0]


def test_no_room_for_one() -> None:
    with pytest.raises(ConfigInvalid, match="8 KV tokens cannot hold one request of 9"):
        run_offline(Counted(kv_tokens=8), OfflineLoad(1, 6, 3, 1, 8))


@settings(max_examples=50, deadline=None)
@given(
    requests=st.integers(1, 40),
    prompt=st.integers(1, 50),
    output=st.integers(1, 20),
    running=st.integers(1, 16),
    kv_tokens=st.integers(70, 400),
    spare=st.integers(0, 60),
)
def test_nothing_is_lost_and_no_bound_is_passed(
    requests: int, prompt: int, output: int, running: int, kv_tokens: int, spare: int
) -> None:
    cost = Counted(kv_tokens)
    step_tokens = running + spare + 1
    run_offline(cost, OfflineLoad(requests, prompt, output, running, step_tokens))
    assert sum(shape.prefill_tokens for shape in cost.shapes) == requests * prompt
    assert sum(shape.prefill_pairs for shape in cost.shapes) == pytest.approx(requests * prompt**2 / 2)
    assert sum(shape.decodes for shape in cost.shapes) == requests * (output - 1)
    read = sum(range(prompt, prompt + output - 1))
    assert sum(shape.decode_context_tokens for shape in cost.shapes) == requests * read
    assert all(shape.decodes + shape.prefill_tokens <= step_tokens for shape in cost.shapes)
    assert all(shape.decodes <= running and shape.decode_context_tokens <= kv_tokens for shape in cost.shapes)
