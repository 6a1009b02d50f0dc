"""What does one replica do from step to step? vLLM's continuous batching, with runs of equal steps jumped.

A step first gives every decoding sequence its token, then spends the rest of its token budget on prompts in the order
of arrival, in chunks. Blocks are taken as tokens are scheduled; when none is left, the sequence admitted last is
preempted and computed again later. While nothing but decoding goes on, the duration of a step grows by the same amount
each time (the context grows by one token a sequence), so that any number of steps is one event.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heappop, heappush
from typing import NamedTuple

from cluster.policy import StepCost, StepShape
from cluster.sim_fleet import EngineSettings
from cluster.sim_job import Job
from cluster.sim_kv import KvCache
from cluster.sim_run import GapCounts, Run


class ReplicaState(NamedTuple):
    """What a replica tells of itself."""

    running: int = 0
    waiting: int = 0
    waiting_prompt_tokens: int = 0
    kv_tokens_used: int = 0
    prefill_tokens: int = 0


class Replica:
    """One engine. After `submit` or `wake`, it wants to be woken at `end_s` if its `version` changed; idle: infinity.

    `started` and `finished` are jobs whose first or last token was emitted by the latest `wake`; whoever wakes it
    empties them.
    """

    __slots__ = (
        "_blocked",
        "_chunks",
        "_context_tokens",
        "_cost",
        "_decoding",
        "_finishes",
        "_left",
        "_partial",
        "_phases",
        "_run",
        "_state",
        "_step",
        "_waiting",
        "_waiting_tokens",
        "beats",
        "end_s",
        "finished",
        "gaps",
        "is_reporting",
        "kv",
        "max_sequences",
        "max_step_tokens",
        "phase_s",
        "preemptions",
        "prefill_left",
        "replica_id",
        "started",
        "version",
        "work_tokens",
    )

    def __init__(self, replica_id: str, cost: StepCost, engine: EngineSettings, kv: KvCache, gaps: GapCounts) -> None:
        self.replica_id = replica_id
        # When it reports within a heartbeat, how many heartbeats ago it began, and whether a report is due.
        self.phase_s = 0.0
        self.beats = 0
        self.is_reporting = False
        self.max_step_tokens = engine.max_step_tokens
        self.max_sequences = engine.max_sequences
        self.kv = kv
        self.gaps = gaps
        self.version = 0
        self.end_s = math.inf
        self.started: list[Job] = []
        self.finished: list[Job] = []
        self.prefill_left = 0
        self.work_tokens = 0
        self.preemptions = 0
        self._cost = cost
        self._waiting: deque[Job] = deque()
        self._waiting_tokens = 0
        # What the latest schedule left waiting, and the state at the end of the latest step.
        self._left = (0, 0)
        self._state = ReplicaState()
        self._blocked = False
        # Sequences that decode, in the order of admission; _partial is the one whose prompt is not all computed.
        self._decoding: dict[Job, None] = {}
        self._partial: Job | None = None
        self._chunks: list[Job] = []
        # Decoding sequences by the step (modulo block) at which they need a new block.
        self._phases = [0] * kv.block_tokens
        self._finishes: list[tuple[int, int, Job]] = []
        self._step = 0
        self._context_tokens = 0
        self._run = Run()

    @property
    def jobs(self) -> int:
        """All that it has not finished."""
        return len(self._decoding) + len(self._chunks) + len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Nothing to do."""
        return self.end_s == math.inf

    def restart_counts(self, gaps: GapCounts) -> None:
        """From now on everything is counted anew."""
        self.gaps = gaps
        self.preemptions = self.work_tokens = 0

    def fits(self, job: Job) -> bool:
        """Whether the whole sequence has room in an empty cache."""
        tokens = job.prompt_tokens + job.output_left - 1
        return -(-tokens // self.kv.block_tokens) <= self.kv.total_blocks

    def submit(self, job: Job, now_s: float) -> None:
        """Queues a job that fits; it is looked at when the step in progress ends."""
        job.replica = self
        job.prefill_left = job.prompt_tokens - self._cached_tokens(job)
        self.prefill_left += job.prefill_left
        self._waiting_tokens += job.prompt_tokens
        self._waiting.append(job)
        if self.end_s == math.inf:
            self._begin(now_s)
        elif self._run.steps > 1 and not self._blocked:
            self._cut(now_s)

    def wake(self, now_s: float) -> None:
        """The run in progress has ended: its tokens are there, and the next run begins."""
        self._apply(self._run.steps, now_s)
        self._state = self._state_after(0)
        self._begin(now_s)

    def state(self, now_s: float) -> ReplicaState:
        """As of the end of the latest step: vLLM tells then, so that a long prompt is not seen before it is computed.

        Who came during a step does not wait yet: it may well be in the next one.
        """
        steps = 0 if self._chunks or self.end_s == math.inf else self._run.ended_by(now_s)
        return self._state_after(self._blocks_of(steps)) if steps else self._state

    def lose_all(self, now_s: float) -> list[Job]:
        """The engine dies: its jobs, each with what it had emitted by now, in the order they came."""
        if self.end_s < math.inf and not self._chunks:
            self._apply(self._run.ended_by(now_s), now_s)
        lost = list(self._decoding) + self._chunks
        for job in lost:
            job.last_token_s = now_s
            job.start_over(job.finish_step - self._step if job.finish_step >= 0 else job.output_left)
        lost += self._waiting
        self.version += 1
        self.end_s = math.inf
        return sorted(lost, key=lambda job: job.order)

    def _state_after(self, more_blocks: int) -> ReplicaState:
        running = len(self._decoding) + (self._partial is not None)
        kv_tokens = (self.kv.used_blocks + more_blocks) * self.kv.block_tokens
        return ReplicaState(running, *self._left, kv_tokens, self.prefill_left)

    def _begin(self, now_s: float) -> None:
        """Plans the next run: one step with prompts in it, or as many decode steps as are alike."""
        self._blocked = False
        self.version += 1
        preemptions = self.preemptions
        need = self._phases[self._step % self.kv.block_tokens]
        is_short = need > self.kv.free_blocks
        if is_short:
            self._preempt(need, now_s)
        if self._partial is not None or self._waiting:
            self._schedule(may_admit=not is_short, now_s=now_s)
            if self._chunks:
                self._left = (len(self._waiting), self._waiting_tokens)
                self._begin_mixed(now_s)
                return
            self._blocked = bool(self._waiting)
        self._left = (len(self._waiting), self._waiting_tokens)
        if self._decoding:
            # Whoever was just preempted may come back with the next step.
            self._begin_decodes(now_s, is_single=self._blocked and self.preemptions > preemptions)
        else:
            self.end_s = math.inf

    def _begin_mixed(self, now_s: float) -> None:
        tokens, pairs = 0, 0.0
        for job in self._chunks:
            tokens += job.chunk_tokens
            pairs += job.chunk_tokens * (job.computed_tokens + job.chunk_tokens / 2)
        decodes = len(self._decoding)
        step_s = self._cost.step_s(StepShape(tokens, pairs, decodes, self._context_tokens + decodes))
        self.end_s = self._run.plan(now_s, 1, step_s, step_s)

    def _begin_decodes(self, now_s: float, is_single: bool) -> None:
        decodes = len(self._decoding)
        finishes = self._finishes
        while finishes[0][2].finish_step != finishes[0][0]:
            heappop(finishes)
        steps = 1 if is_single else self._steps_with_room(finishes[0][0] - self._step)
        first_s = last_s = self._cost.step_s(StepShape(0, 0.0, decodes, self._context_tokens + decodes))
        if steps > 1:
            last_s = self._cost.step_s(StepShape(0, 0.0, decodes, self._context_tokens + steps * decodes))
        self.end_s = self._run.plan(now_s, steps, first_s, last_s)

    def _schedule(self, may_admit: bool, now_s: float) -> None:
        """Fills `_chunks` with the prompts that this step works on, and takes their blocks and the decodes'."""
        kv = self.kv
        budget = self.max_step_tokens - len(self._decoding)
        decode_blocks = self._phases[self._step % kv.block_tokens]
        job = self._partial
        if job is not None and budget > 0:
            chunk = min(job.prompt_tokens - job.computed_tokens, budget)
            blocks = self._new_blocks(job, job.computed_tokens + chunk)
            if blocks + decode_blocks > kv.free_blocks:
                self._send_back(job, job.output_left, now_s)
                may_admit = False
            else:
                self._give_chunk(job, chunk, blocks)
                budget -= chunk
        waiting = self._waiting
        while may_admit and waiting and budget > 0 and len(self._decoding) + len(self._chunks) < self.max_sequences:
            job = waiting[0]
            units = kv.cached_units(job.request.block_hashes, job.prompt_tokens)
            cached = units * kv.unit_tokens
            chunk = min(job.prompt_tokens - cached, budget)
            blocks = -(-(cached + chunk) // kv.block_tokens) - units * kv.unit_blocks
            room = kv.free_blocks - decode_blocks
            if blocks > room or (units and blocks + kv.idle_blocks_of(job.request.block_hashes, units) > room):
                break
            waiting.popleft()
            self._admit(job, units, cached)
            self._give_chunk(job, chunk, blocks)
            budget -= chunk
        if self._chunks and decode_blocks:
            kv.take(decode_blocks)

    def _admit(self, job: Job, units: int, cached_tokens: int) -> None:
        hashes = job.request.block_hashes
        self._waiting_tokens -= job.prompt_tokens
        self.prefill_left += job.prompt_tokens - cached_tokens - job.prefill_left
        job.prefill_left = job.prompt_tokens - cached_tokens
        if job.cached_tokens < 0:
            job.cached_tokens = cached_tokens
        job.computed_tokens = cached_tokens
        if units:
            self.kv.hold(hashes, units)
            job.held = list(hashes[:units])

    def _give_chunk(self, job: Job, chunk: int, blocks: int) -> None:
        kv = self.kv
        kv.take(blocks)
        job.private_blocks += blocks
        job.chunk_tokens = chunk
        self._chunks.append(job)
        hashes = job.request.block_hashes
        done = job.computed_tokens + chunk
        if hashes:
            for place in range(job.computed_tokens // kv.unit_tokens, min(len(hashes), done // kv.unit_tokens)):
                if kv.add(hashes[place]):
                    job.held.append(hashes[place])
                    job.private_blocks -= kv.unit_blocks
        self._partial = job if done < job.prompt_tokens else None

    def _apply(self, steps: int, now_s: float) -> None:
        """Books that many steps of the run in progress."""
        decodes = len(self._decoding)
        if decodes and steps:
            self.gaps.add_run(self._run, steps, decodes)
            if not self._chunks:
                blocks = self._blocks_of(steps)
                if blocks:
                    self.kv.take(blocks)
            self._context_tokens += steps * decodes
        self._step += steps
        if self._chunks:
            self._apply_chunks(now_s)
        finishes = self._finishes
        while finishes and finishes[0][0] <= self._step:
            finish_step, _, job = heappop(finishes)
            if job.finish_step == finish_step and job.replica is self:
                self._finish(job, now_s)

    def _apply_chunks(self, now_s: float) -> None:
        for job in self._chunks:
            job.computed_tokens += job.chunk_tokens
            job.prefill_left -= job.chunk_tokens
            self.prefill_left -= job.chunk_tokens
            if job.computed_tokens < job.prompt_tokens:
                continue
            if job.first_token_s < 0:
                job.first_token_s = now_s
                self.started.append(job)
            else:
                self.gaps.add(now_s - job.last_token_s, 1)
            self._phases[(self._step - job.prompt_tokens) % self.kv.block_tokens] += 1
            self._context_tokens += job.prompt_tokens
            self._decoding[job] = None
            job.finish_step = self._step + job.output_left - 1
            heappush(self._finishes, (job.finish_step, job.order, job))
        self._chunks.clear()

    def _finish(self, job: Job, now_s: float) -> None:
        self._leave(job, job.prompt_tokens + job.output_left - 1)
        job.output_left = 0
        job.last_token_s = now_s
        job.replica = None
        self.work_tokens += job.request.prompt_tokens + job.request.output_tokens
        self.finished.append(job)

    def _leave(self, job: Job, kv_tokens: int) -> None:
        """A decoding sequence gives everything back."""
        del self._decoding[job]
        self._phases[(self._step - kv_tokens) % self.kv.block_tokens] -= 1
        self._context_tokens -= kv_tokens
        decoded_blocks = -(-kv_tokens // self.kv.block_tokens) - -(-job.prompt_tokens // self.kv.block_tokens)
        self.kv.release(job.held, job.private_blocks + decoded_blocks)

    def _preempt(self, need: int, now_s: float) -> None:
        """Sends the latest sequences back until the next token of each of the others has room."""
        while self._phases[self._step % self.kv.block_tokens] > self.kv.free_blocks:
            if self._partial is not None:
                self._send_back(self._partial, self._partial.output_left, now_s)
                continue
            job = next(reversed(self._decoding))
            output_left = job.finish_step - self._step
            self._leave(job, job.prompt_tokens + job.output_left - 1 - output_left)
            job.held = []
            job.private_blocks = 0
            job.last_token_s = now_s
            self._send_back(job, output_left, now_s)

    def _send_back(self, job: Job, output_left: int, now_s: float) -> None:
        if job is self._partial:
            self.kv.release(job.held, job.private_blocks)
            self._partial = None
        self.preemptions += 1
        self.prefill_left -= job.prefill_left
        job.start_over(output_left)
        job.prefill_left = job.prompt_tokens - self._cached_tokens(job)
        self.prefill_left += job.prefill_left
        self._waiting_tokens += job.prompt_tokens
        self._waiting.appendleft(job)

    def _cut(self, now_s: float) -> None:
        end_s = self._run.cut(now_s)
        if end_s is not None:
            self.end_s = end_s
            self.version += 1

    def _cached_tokens(self, job: Job) -> int:
        hashes = job.request.block_hashes
        return self.kv.cached_units(hashes, job.prompt_tokens) * self.kv.unit_tokens if hashes else 0

    def _new_blocks(self, job: Job, tokens: int) -> int:
        return -(-tokens // self.kv.block_tokens) - -(-job.computed_tokens // self.kv.block_tokens)

    def _blocks_of(self, steps: int) -> int:
        """KV blocks that so many steps of all decoding sequences take."""
        phases = self._phases
        size = len(phases)
        whole, rest = divmod(steps, size)
        blocks = whole * len(self._decoding)
        first = self._step % size
        for place in range(first, first + rest):
            blocks += phases[place % size]
        return blocks

    def _steps_with_room(self, steps: int) -> int:
        """At most so many steps, and no more than there are blocks for."""
        decodes, free, phases = len(self._decoding), self.kv.free_blocks, self._phases
        size = len(phases)
        if -(-steps // size) * decodes <= free:
            return steps
        whole, rest = divmod(free, decodes)
        first = self._step % size
        possible = whole * size
        for place in range(first, first + size):
            rest -= phases[place % size]
            if rest < 0:
                break
            possible += 1
        return min(steps, possible)
