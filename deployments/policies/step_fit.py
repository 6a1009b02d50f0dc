"""How fast are this replica's steps? A straight line through those that it measured lately."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from cluster.policy import StepSpeed
from llama31.engine import MeasuredStep

# A step's weight is 1/e after so many later ones: about a minute of steps of 20 ms.
MEMORY_STEPS = 3000.0
# Before so many steps, and so many prompt tokens among them, nothing is said.
MIN_STEPS = 200.0
MIN_PREFILL_TOKENS = 2000.0
# Of the mean square of each quantity: keeps two that always move together from taking opposite signs.
RIDGE = 1e-6


class StepFit:
    """Least squares with every share at least zero, over four quantities: one, prefill tokens, decodes, context."""

    def __init__(self, max_step_tokens: int) -> None:
        self._max_step_tokens = max_step_tokens
        self._steps = 0.0
        self._prefill_tokens = 0.0
        self._squares = [[0.0] * 4 for _ in range(4)]
        self._products = [0.0] * 4

    def add(self, steps: Sequence[MeasuredStep]) -> None:
        """Takes what was measured since the last time."""
        keep = 1 - 1 / MEMORY_STEPS
        for step in steps:
            row = (1.0, float(step.prefill_tokens), float(step.running), float(step.context_tokens))
            self._steps = self._steps * keep + 1
            self._prefill_tokens = self._prefill_tokens * keep + step.prefill_tokens
            for i, left in enumerate(row):
                self._products[i] = self._products[i] * keep + left * step.seconds
                squares = self._squares[i]
                for j, right in enumerate(row):
                    squares[j] = squares[j] * keep + left * right

    def speed(self) -> StepSpeed | None:
        """The line; None until enough is known."""
        if self._steps < MIN_STEPS or self._prefill_tokens < MIN_PREFILL_TOKENS:
            return None
        fixed_s, prefill_token_s, sequence_s, context_token_s = self._shares()
        if not prefill_token_s:
            return None
        return StepSpeed(fixed_s, prefill_token_s, sequence_s, context_token_s, self._max_step_tokens)

    def _shares(self) -> list[float]:
        """The best of all choices of quantities whose own least squares have no negative share."""
        best, best_gain = [0.0] * 4, 0.0
        for count in range(1, 5):
            for chosen in combinations(range(4), count):
                found = self._solve(chosen)
                if found is None or min(found) < 0:
                    continue
                gain = sum(share * self._products[i] for i, share in zip(chosen, found, strict=True))
                if gain > best_gain * (1 + 1e-9):
                    best_gain, best = gain, [0.0] * 4
                    for i, share in zip(chosen, found, strict=True):
                        best[i] = share
        return best

    def _solve(self, chosen: Sequence[int]) -> list[float] | None:
        """Gauss without pivoting: the matrix is symmetric and positive."""
        rows = [[self._squares[i][j] * (1 + RIDGE * (i == j)) for j in chosen] + [self._products[i]] for i in chosen]
        size = len(rows)
        for i in range(size):
            if rows[i][i] <= 0:
                return None
            for j in range(i + 1, size):
                factor = rows[j][i] / rows[i][i]
                rows[j] = [right - factor * left for left, right in zip(rows[i], rows[j], strict=True)]
        found = [0.0] * size
        for i in reversed(range(size)):
            rest = sum(rows[i][j] * found[j] for j in range(i + 1, size))
            found[i] = (rows[i][size] - rest) / rows[i][i]
        return found
