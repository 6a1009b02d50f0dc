"""What would production's admission do with a fleet of engines? Its own classes, in an event loop of virtual time.

The engines are modelled (continuous batching with chunked prefill, steps by a straight line); everything before them
is `deployments.admission.Admission` with its room and its policy, as an ingress runs it.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.policy import ReplicaSnapshot, StepSpeed
from deployments.admission import Admission
from deployments.call import Call, ModelState
from deployments.choices import Job
from deployments.metrics import Metrics
from deployments.policies.admission import FairAdmission
from deployments.room import EngineBounds, Room
from deployments.tenant import Tenant
from llama31.chat import GenerationOptions, Priority, StopChoices
from llama31.engine import EngineRequest, Limits, Sampling
from llama31.errors import Llama31Error

MAX_RUNNING = 256


class _JumpingSelector(selectors.SelectSelector):
    """Waits for nothing: where the loop would wait, time jumps."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout:
            self.now_s += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs whatever is due and then jumps to what is due next."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run_virtually(main: Coroutine[Any, Any, None]) -> None:
    """As `asyncio.run`, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main)


@dataclass(slots=True)
class Asked:
    """One request, and what became of it."""

    arrival_s: float
    tenant: str
    prompt_tokens: int
    output_tokens: int
    ttft_s: float = math.nan
    refused: str = ""


@dataclass(slots=True)
class _Sequence:
    prompt_tokens: int
    output_tokens: int
    progress: Callable[[bool], None]
    prefill_left: int = 0


@dataclass(slots=True)
class Engine:
    """One replica: takes prompts first come first served, as many a step as fit, beside all that decode."""

    name: str
    speed: StepSpeed
    kv_tokens: int
    waiting: deque[_Sequence] = field(default_factory=deque)
    outstanding_tokens: int = 0
    _prefilling: deque[_Sequence] = field(default_factory=deque)
    _ends: list[tuple[int, int, _Sequence]] = field(default_factory=list)
    _held_tokens: int = 0
    _context_tokens: int = 0
    _step: int = 0
    _count: int = 0
    _work: asyncio.Event = field(default_factory=asyncio.Event)

    def submit(self, sequence: _Sequence) -> None:
        """Queues it."""
        sequence.prefill_left = sequence.prompt_tokens
        self.outstanding_tokens += sequence.prompt_tokens + sequence.output_tokens
        self.waiting.append(sequence)
        self._work.set()

    def snapshot(self) -> ReplicaSnapshot:
        """As its link would tell."""
        prefill = sum(s.prefill_left for s in self.waiting) + sum(s.prefill_left for s in self._prefilling)
        running = len(self._ends) + len(self._prefilling)
        waiting_tokens = sum(s.prompt_tokens for s in self.waiting)
        known = (True, False, running, len(self.waiting), waiting_tokens, self._held_tokens, self.kv_tokens)
        return ReplicaSnapshot(self.name, *known, self.outstanding_tokens, prefill, 0.0, self.speed)

    async def run(self) -> None:
        """Steps until it is cancelled."""
        while True:
            if not (self.waiting or self._prefilling or self._ends):
                self._work.clear()
                await self._work.wait()
            chunks = self._chunks()
            prefill = sum(tokens for _, tokens in chunks)
            await asyncio.sleep(self.speed.step_s(prefill, len(self._ends), self._context_tokens))
            self._apply(chunks)

    def _chunks(self) -> list[tuple[_Sequence, int]]:
        budget = self.speed.max_step_tokens - len(self._ends)
        chunks: list[tuple[_Sequence, int]] = []
        # At most the first one is begun: it got what was left of the last step.
        while budget > 0 and (len(self._prefilling) > len(chunks) or self._take_next()):
            sequence = self._prefilling[len(chunks)]
            tokens = min(budget, sequence.prefill_left)
            chunks.append((sequence, tokens))
            budget -= tokens
        return chunks

    def _take_next(self) -> bool:
        """The next prompt that waits, if its whole sequence has room."""
        if not self.waiting or len(self._ends) + len(self._prefilling) >= MAX_RUNNING:
            return False
        need = self.waiting[0].prompt_tokens + self.waiting[0].output_tokens
        if self._held_tokens + need > self.kv_tokens and self._held_tokens:
            return False
        self._held_tokens += need
        self._prefilling.append(self.waiting.popleft())
        return True

    def _apply(self, chunks: Sequence[tuple[_Sequence, int]]) -> None:
        self._step += 1
        self._context_tokens += len(self._ends)
        for sequence, tokens in chunks:
            sequence.prefill_left -= tokens
            if not sequence.prefill_left:
                self._prefilling.popleft()
                self._count += 1
                self._context_tokens += sequence.prompt_tokens + 1
                end = self._step + sequence.output_tokens - 1
                heapq.heappush(self._ends, (end, self._count, sequence))
                sequence.progress(False)
        while self._ends and self._ends[0][0] <= self._step:
            sequence = heapq.heappop(self._ends)[2]
            tokens = sequence.prompt_tokens + sequence.output_tokens
            self._held_tokens -= tokens
            self._context_tokens -= tokens
            self.outstanding_tokens -= tokens
            sequence.progress(True)


class Fleet:
    """What admission asks of the fleet, and the way to its engines: the one with the least tokens is next."""

    version = 1

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = engines

    def snapshots(self) -> Sequence[ReplicaSnapshot]:
        """All of them."""
        return [engine.snapshot() for engine in self.engines]

    def state(self) -> ModelState:
        """Always there."""
        return "ready"

    def submit(self, sequence: _Sequence) -> None:
        """To the engine with the least work."""
        min(self.engines, key=lambda engine: engine.outstanding_tokens).submit(sequence)


async def serve(asked: Sequence[Asked], engines: Sequence[Engine], metrics: Metrics, is_fair: bool) -> None:
    """Answers all of them; without fairness each goes to an engine as it comes."""
    fleet = Fleet(engines)
    room = Room(fleet, EngineBounds(MAX_RUNNING, engines[0].speed.max_step_tokens), lambda: 1.0)
    admission = Admission("bench", room, metrics, FairAdmission()) if is_fair else None
    steps = [asyncio.create_task(engine.run()) for engine in engines]
    now_s = asyncio.get_running_loop().time
    tasks = []
    for number, one in enumerate(asked):
        await asyncio.sleep(max(0.0, one.arrival_s - now_s()))
        tasks.append(asyncio.create_task(_answer(one, number, fleet, admission)))
    await asyncio.gather(*tasks)
    for step in steps:
        step.cancel()
    await asyncio.gather(*steps, return_exceptions=True)


async def _answer(asked: Asked, number: int, fleet: Fleet, admission: Admission | None) -> None:
    now_s = asyncio.get_running_loop().time
    over = asyncio.Event()
    ticket = None
    if admission is not None:
        try:
            ticket = await admission.enter(_job(asked, number))
        except Llama31Error as error:
            asked.refused = error.reason
            return

    def progress(is_end: bool) -> None:
        if not is_end:
            asked.ttft_s = now_s() - asked.arrival_s
        else:
            over.set()
        if ticket is not None:
            ticket.progress(is_end)

    fleet.submit(_Sequence(asked.prompt_tokens, asked.output_tokens, progress))
    await over.wait()
    if ticket is not None:
        ticket.leave(asked.output_tokens)


def _job(asked: Asked, number: int) -> Job:
    """The limit is not the answer's length: that is what admission has to guess."""
    limit = 4096
    priority = Priority.STANDARD
    request = EngineRequest(str(number), range(asked.prompt_tokens), Sampling(), Limits(limit), priority=priority.value)
    options = GenerationOptions(stop=StopChoices(max_output_tokens=limit))
    return Job(Call(str(number), None, Tenant(asked.tenant)), options, request, 0.0, False)


def slowed(speed: StepSpeed, share: float) -> StepSpeed:
    """An engine of which only a share is there."""
    return replace(
        speed,
        fixed_s=speed.fixed_s / share,
        prefill_token_s=speed.prefill_token_s / share,
        sequence_s=speed.sequence_s / share,
        context_token_s=speed.context_token_s / share,
    )
