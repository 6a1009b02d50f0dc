"""How much work comes to one ingress? What the autoscaler is told of it; counters only grow."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DemandReport:
    """What one ingress saw since it began, and what waits there now.

    `output_tokens` and `answered` are of whole answers: together they say how long an answer is.
    `held` requests were not given to a replica yet.
    """

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    answered: int = 0
    in_flight: int = 0
    held: int = 0
    backlog_s: float = 0.0


class DemandCounter:
    """Counts for one ingress process."""

    def __init__(self, in_flight: Sized, held: Sized, backlog_s: Callable[[], float]) -> None:
        """`backlog_s` predicts the time to first token of a request that a replica were given now."""
        self._in_flight = in_flight
        self._held = held
        self._backlog_s = backlog_s
        self._requests = self._prompt_tokens = self._output_tokens = self._answered = 0

    def arrive(self, prompt_tokens: int) -> None:
        """A request whose prompt was understood, whether it is admitted or not."""
        self._requests += 1
        self._prompt_tokens += prompt_tokens

    def answer(self, output_tokens: int) -> None:
        """An answer is whole."""
        self._answered += 1
        self._output_tokens += output_tokens

    def report(self) -> DemandReport:
        """The counters now, and what is in flight."""
        return DemandReport(
            requests=self._requests,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            answered=self._answered,
            in_flight=len(self._in_flight),
            held=len(self._held),
            backlog_s=self._backlog_s(),
        )
