"""How much was it lately? A sum whose parts halve with time; the time is handed in."""

from __future__ import annotations

import math

HALF_S = 300.0  # as long as a conversation rests between two turns, and many requests long


class FadingSum:
    """For `ReplicaSnapshot.recent_tokens`."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._at_s = 0.0

    def add(self, amount: float, now_s: float) -> None:
        """From now on."""
        self._sum = self.at(now_s) + amount
        self._at_s = now_s

    def at(self, now_s: float) -> float:
        """What is left of it."""
        return self._sum * math.exp2((self._at_s - now_s) / HALF_S)
