"""How does one choice come from a replica, and several choices at once?"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from deployments.answer import Answer
from deployments.call import Call
from deployments.continuation import ContinuingStream
from deployments.merged import merged
from deployments.sequence_stream import Progress, join_outputs
from llama31.chat import Event, FinishReason, GenerationOptions, ResourceUse, TokenColumns, Usage
from llama31.engine import EngineOutput, EngineRequest
from llama31.errors import (
    DeadlineExceeded,
    InvalidRequest,
    RequestCancelled,
    SlowConsumer,
    StreamInterrupted,
)

# Events of several choices that may wait for the reader; behind them the engine's outputs are merged.
WAITING_EVENTS = 16
# Ends of the caller's own making, whatever the replica had done by then.
_PAID_ENDS = frozenset({RequestCancelled.reason, SlowConsumer.reason, DeadlineExceeded.reason})


@dataclass(frozen=True, slots=True)
class Job:
    """One admitted request, ready for an engine. Choice i runs `request` with seed + i.

    `trace` is the W3C context that its replicas' spans belong to; empty without tracing. `blocks` are the prompt's,
    as the router knows them. `progress` hears of the first output and of the end of each of its sequences.
    """

    call: Call
    options: GenerationOptions
    request: EngineRequest
    arrived_s: float
    is_limited_by_context: bool
    warnings: tuple[str, ...] = ()
    trace: Mapping[str, str] = field(default_factory=dict)
    blocks: Sequence[int] = ()
    progress: Progress | None = None

    @property
    def scores_prompt(self) -> bool:
        """Whether the answer begins with the prompt's log-probabilities."""
        return self.request.prompt_top_logprobs is not None

    def of_choice(self, index: int) -> EngineRequest:
        """The sequence of one choice."""
        if index == 0:
            return self.request
        sampling = replace(self.request.sampling, seed=(self.request.sampling.seed + index) % 2**64)
        request_id = f"{self.request.request_id}-{index}"
        return replace(self.request, request_id=request_id, sampling=sampling, prompt_top_logprobs=None)


# Gives a sequence of a job to a replica, and the next one if that is lost.
Start = Callable[[Job, EngineRequest], ContinuingStream]
Observe = Callable[[Answer, EngineOutput, float], None]


class ChoiceRun:
    """One choice on its replica."""

    def __init__(self, job: Job, index: int, answer: Answer, start: Start, observe: Observe) -> None:
        self._job = job
        self._observe = observe
        self.answer = answer
        # The scored prompt, once it has come.
        self.prompt: TokenColumns | None = None
        self._hold_s = job.options.returns.max_coalesce_s
        self.stream = start(job, job.of_choice(index))
        soft_s = job.options.stop.time_limit_s
        self._soft_limit_s = None if soft_s is None else job.arrived_s + soft_s
        self._is_time_up = False

    async def events(self) -> AsyncGenerator[Event, None]:
        """Deltas, then the end of the choice. Raises: InvalidRequest, StreamInterrupted, DeadlineExceeded."""
        answer = self.answer
        alarm = self._set_alarm()
        try:
            while not answer.is_done:
                output = await self._next_output()
                for event in answer.add(output) if output else answer.end(FinishReason.TIME_LIMIT):
                    yield event
        finally:
            if alarm is not None:
                alarm.cancel()
            self.stream.cancel()

    def _set_alarm(self) -> asyncio.TimerHandle | None:
        """One timer for the whole choice: a time limit around every wait would cost more than the wait."""
        limits_s = [limit_s for limit_s in (self._job.call.deadline_s, self._soft_limit_s) if limit_s is not None]
        if not limits_s:
            return None
        return asyncio.get_running_loop().call_at(min(limits_s), self._time_is_up)

    def _time_is_up(self) -> None:
        self._is_time_up = True
        self.stream.wake()

    async def _next_output(self) -> EngineOutput | None:
        """The next output; None when the soft time limit passed."""
        output = None if self._is_time_up else await self.stream.next()
        if output is None:
            # Which limit it was is known beforehand: a timer may fire a little before its time.
            if self._soft_limit_s is not None and self._soft_limit_s <= (self._job.call.deadline_s or math.inf):
                return None
            raise DeadlineExceeded("decode" if self.answer.output_tokens else "prefill")
        if self._hold_s and self.answer.first_token_s is not None:
            output = await self._gather(output)
        if output.refusal:
            raise InvalidRequest("request", output.refusal)
        self.prompt = self.prompt or output.prompt
        self._observe(self.answer, output, self._job.arrived_s)
        return output

    async def _gather(self, output: EngineOutput) -> EngineOutput:
        """Waits for more tokens to send with these. What ends the wait is met again by the next one."""
        with contextlib.suppress(TimeoutError, StreamInterrupted):
            async with asyncio.timeout(self._hold_s):
                while not output.is_last and (more := await self.stream.next()) is not None:
                    output = join_outputs(output, more)
        return output


async def interleaved(runs: Sequence[ChoiceRun]) -> AsyncGenerator[Event, None]:
    """The events of several choices as they come. The first error ends all of them."""
    async with aclosing(merged([run.events() for run in runs], WAITING_EVENTS)) as events:
        async for _, event in events:
            yield event


def total_usage(runs: Sequence[ChoiceRun], job: Job, now_s: float, resources: ResourceUse | None = None) -> Usage:
    """What all choices used: the prompt counts once, times are those of the first choice that had a token."""
    usages = [run.answer.usage(len(job.request.prompt_token_ids), job.arrived_s, now_s) for run in runs]
    first = min(usages, key=lambda usage: usage.first_token_s or float("inf"))
    return replace(first, output_tokens=sum(usage.output_tokens for usage in usages), resources=resources)


def used_tokens(job: Job | None, answers: Sequence[Answer], outcome: str) -> int:
    """What a tenant is charged.

    A prompt that a replica was given is paid for, also by a caller who leaves before the first token: the prefill ran.
    Only a failure before it, like a loss of the replica, costs nothing.
    """
    if job is None:
        return 0
    has_answered = any(answer.is_done or answer.first_token_s is not None for answer in answers)
    if not has_answered and outcome not in _PAID_ENDS:
        return 0
    return len(job.request.prompt_token_ids) + sum(answer.output_tokens for answer in answers)
