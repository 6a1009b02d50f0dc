"""What does one replica sustain, and how fast is it then? From the cost of its steps alone, without queues.

In the long run some steps carry a chunk of a prompt beside the decodes and the others only decode. So many sequences
run that they make the output tokens which come in: that balance is solved here in microseconds; the simulator adds
bursts, waiting and the spread of lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.policy import StepCost, StepShape

_HALVINGS = 18
_OCTAVES = 8
_CHUNK_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Lengths:
    """Prompt and output tokens of a workload in the means that its load depends on.

    `square_tokens` is the mean of prompt tokens squared; `context_tokens` what a running sequence reads on average;
    `held_tokens` what it holds at its end; `longest_prompt_tokens` the length at the SLO's percentile.
    """

    prompt_tokens: float
    output_tokens: float
    square_tokens: float
    context_tokens: float
    held_tokens: float
    longest_prompt_tokens: float

    @classmethod
    def of(cls, lengths: Sequence[tuple[int, int]], percentile: float) -> Lengths:
        """Of (prompt, output) pairs, all equally likely."""
        count = len(lengths)
        output = sum(o for _, o in lengths) / count
        prompts = sorted(p for p, _ in lengths)
        return cls(
            prompt_tokens=sum(prompts) / count,
            output_tokens=output,
            square_tokens=sum(p * p for p in prompts) / count,
            context_tokens=sum(o * (p + o / 2) for p, o in lengths) / count / output,
            held_tokens=sum(o * (p + o) for p, o in lengths) / count / output,
            longest_prompt_tokens=prompts[min(count - 1, int(percentile * count))],
        )


@dataclass(frozen=True, slots=True)
class Steady:
    """A replica at one rate: the mean time between tokens, a step with prompts, one without, a mean prompt alone.

    `mixed_share` of the steps have prompts; they fill `mixed_time`, and `busy` is the share of time with any step.
    """

    running: float
    itl_s: float
    mixed_step_s: float
    decode_step_s: float
    mixed_share: float
    mixed_time: float
    busy: float


@dataclass(frozen=True, slots=True)
class SteadyReplica:
    """One replica of a plan under one workload; at most `max_running` sequences, steps of `max_step_tokens`."""

    cost: StepCost
    lengths: Lengths
    max_running: int
    max_step_tokens: int

    def running_at_most(self) -> float:
        """Sequences that its KV cache and its limit hold at once."""
        return min(float(self.max_running), self.cost.kv_tokens / self.lengths.held_tokens)

    def capacity_per_s(self) -> float:
        """The highest rate of requests that it sustains; 0 if it holds no sequence of this length."""
        low, high = 0.0, 1.0
        while self._bracket(high) is not None:
            low, high = high, 4 * high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._bracket(middle) is None else (middle, high)
        return low

    def at(self, rate_per_s: float) -> Steady | None:
        """How it works at a rate; None beyond its capacity."""
        running = self._enough(rate_per_s)
        if running is None:
            return None
        mixed_s, decode_s, share = self._steps(rate_per_s, running)
        steps_per_s = share / mixed_s + (1 - share) / decode_s
        # Below one running sequence it computes only part of the time.
        busy = min(1.0, share + running * (1 - share))
        mixed_share = share / mixed_s / steps_per_s
        return Steady(running, 1 / steps_per_s, mixed_s, decode_s, mixed_share, share, busy)

    def prefill_s(self, prompt_tokens: float, running: float = 0.0) -> float:
        """A prompt of that length alone, chunk by chunk, beside so many decodes."""
        chunk, done, seconds = max(1.0, self.max_step_tokens - running), 0.0, 0.0
        while done < prompt_tokens:
            tokens = min(chunk, prompt_tokens - done)
            seconds += self._step_s(tokens, tokens * (done + tokens / 2), running)
            done += tokens
        return seconds

    def decode_s(self, running: float) -> float:
        """One step of so many sequences without a prompt."""
        return self._step_s(0, 0.0, running)

    def _enough(self, rate_per_s: float) -> float | None:
        """The fewest running sequences that keep up with the rate; None if no number does."""
        bracket = self._bracket(rate_per_s)
        if bracket is None:
            return None
        fewer, running = bracket
        for _ in range(_HALVINGS):
            middle = (fewer + running) / 2
            fewer, running = (fewer, middle) if self._keeps_up(rate_per_s, middle) else (middle, running)
        return running

    def _bracket(self, rate_per_s: float) -> tuple[float, float] | None:
        """A number of sequences that does not keep up with the rate, and the next one that does.

        More sequences make more tokens a second until their steps leave the prompts no time.
        """
        most, fewer = self.running_at_most(), 0.0
        if most < 1:
            return None
        for place in range(_OCTAVES + 1):
            running = most * 2.0 ** (place - _OCTAVES)
            if self._keeps_up(rate_per_s, running):
                return fewer, running
            fewer = running
        return None

    def _keeps_up(self, rate_per_s: float, running: float) -> bool:
        mixed_s, decode_s, share = self._steps(rate_per_s, running)
        if share >= 1:
            return False
        return running * (share / mixed_s + (1 - share) / decode_s) >= rate_per_s * self.lengths.output_tokens

    def _steps(self, rate_per_s: float, running: float) -> tuple[float, float, float]:
        """A step with prompt tokens, one without, and the share of time of the former.

        A chunk is one prompt, or all that came in during the step before it, as far as the step has room.
        """
        mean, room = self.lengths.prompt_tokens, max(1.0, self.max_step_tokens - running)
        chunk, mixed_s = min(room, mean), 0.0
        for _ in range(_CHUNK_ROUNDS):
            pairs = chunk * self.lengths.square_tokens / mean / 2
            mixed_s = self._step_s(chunk, pairs, running)
            if chunk >= room or chunk >= rate_per_s * mean * mixed_s:
                break
            chunk = min(room, max(2 * chunk, rate_per_s * mean * mixed_s))
        return mixed_s, self.decode_s(max(1.0, running)), rate_per_s * mean / chunk * mixed_s

    def _step_s(self, prefill: float, pairs: float, running: float) -> float:
        decodes = round(running)
        context = round(decodes * self.lengths.context_tokens)
        return self.cost.step_s(StepShape(max(1, round(prefill)) if prefill else 0, pairs, decodes, context))
