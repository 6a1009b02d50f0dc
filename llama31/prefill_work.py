"""How much of the prompts is still to be computed, and how long do the engine's steps take?"""

from __future__ import annotations

from collections import deque

from llama31.engine import MeasuredStep

# Nobody asks for more than a second's steps; an engine that is never asked keeps no more.
MAX_STEPS = 1000


class PrefillWork:
    """Told of prompts and of steps. What a step computed of a prompt is known in sum only, not for each."""

    def __init__(self) -> None:
        self._uncached: dict[str, int] = {}
        self._uncached_tokens = 0
        self._computed_tokens = 0
        self._last_step_s: float | None = None
        self._steps: deque[MeasuredStep] = deque(maxlen=MAX_STEPS)

    @property
    def left_tokens(self) -> int:
        """Still to be computed."""
        return max(0, self._uncached_tokens - self._computed_tokens)

    def begin(self, request_id: str, uncached_tokens: int) -> None:
        """So much of its prompt is not in the prefix cache."""
        self._uncached[request_id] = uncached_tokens
        self._uncached_tokens += uncached_tokens

    def end(self, request_id: str) -> None:
        """It has its first token, or will have none; idempotent."""
        uncached_tokens = self._uncached.pop(request_id, None)
        if uncached_tokens is None:
            return
        self._uncached_tokens -= uncached_tokens
        # Of one that was cancelled some may be missing here: made good when the last one ends.
        self._computed_tokens = max(0, self._computed_tokens - uncached_tokens) if self._uncached else 0

    def wake(self) -> None:
        """There was no work: the next step follows a pause."""
        self._last_step_s = None

    def count_step(self, now_s: float, prefill_tokens: int, running: int, context_tokens: int) -> None:
        """A step ended."""
        if self._uncached:
            self._computed_tokens += prefill_tokens
        if self._last_step_s is not None:
            self._steps.append(MeasuredStep(now_s - self._last_step_s, prefill_tokens, running, context_tokens))
        self._last_step_s = now_s

    def take_steps(self) -> tuple[MeasuredStep, ...]:
        """Those that followed another step, since the last call."""
        steps = tuple(self._steps)
        self._steps.clear()
        return steps
