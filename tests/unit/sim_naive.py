"""How the engine would be simulated without any shortcut: one step after the other, every sequence by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.policy import StepCost, StepShape, StepSpeed
from cluster.sim_fleet import EngineSettings
from cluster.workload import Request


@dataclass(frozen=True)
class LineCost:
    """A step's duration as a straight line."""

    kv_tokens: int = 460_000
    fixed_s: float = 0.01
    prefill_token_s: float = 7e-5
    sequence_s: float = 3e-5
    context_token_s: float = 3e-8

    def step_s(self, shape: StepShape) -> float:
        return (
            self.fixed_s
            + shape.prefill_tokens * self.prefill_token_s
            + shape.prefill_pairs * 1e-9
            + shape.decodes * self.sequence_s
            + shape.decode_context_tokens * self.context_token_s
        )

    def speed(self) -> StepSpeed:
        return StepSpeed(self.fixed_s, self.prefill_token_s, self.sequence_s, self.context_token_s, 8192)


@dataclass(eq=False)
class Sequence:
    request: Request
    emitted: int = 0
    computed: int = 0
    blocks: int = 0
    admitted_tokens: int = 0
    times: list[float] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return self.request.prompt_tokens + self.emitted


def naive_times(requests: list[Request], cost: StepCost, engine: EngineSettings) -> list[list[float]]:
    """When each request got each of its tokens; no prefix cache."""
    size = engine.block_tokens
    free = cost.kv_tokens // size
    waiting: list[Sequence] = []
    running: list[Sequence] = []
    arriving = [Sequence(request) for request in requests]
    everyone = list(arriving)
    now_s = 0.0
    while arriving or waiting or running:
        if not waiting and not running:
            now_s = max(now_s, arriving[0].request.arrival_s)
        while arriving and arriving[0].request.arrival_s <= now_s:
            waiting.append(arriving.pop(0))
        budget, preempted, chunks = engine.max_step_tokens, False, {}
        place = 0
        while place < len(running):
            sequence = running[place]
            chunk = min(sequence.tokens - sequence.computed, budget)
            need = -(-(sequence.computed + chunk) // size) - sequence.blocks
            while need > free:
                preempted = True
                victim = running.pop()
                free += victim.blocks
                victim.blocks = victim.computed = 0
                waiting.insert(0, victim)
                if victim is sequence:
                    break
            else:
                free -= need
                sequence.blocks += need
                chunks[sequence] = chunk
                budget -= chunk
                place += 1
        while not preempted and waiting and budget and len(running) < engine.max_sequences:
            sequence = waiting[0]
            chunk = min(sequence.tokens, budget)
            need = -(-chunk // size)
            if need > free:
                break
            free -= need
            sequence.blocks = need
            sequence.admitted_tokens = sequence.tokens
            chunks[sequence] = chunk
            budget -= chunk
            running.append(waiting.pop(0))
        now_s += cost.step_s(_shape(chunks))
        for sequence, chunk in chunks.items():
            sequence.computed += chunk
            if sequence.computed == sequence.tokens:
                sequence.emitted += 1
                sequence.times.append(now_s)
                if sequence.emitted == sequence.request.output_tokens:
                    running.remove(sequence)
                    free += sequence.blocks
    return [sequence.times for sequence in everyone]


def _shape(chunks: dict[Sequence, int]) -> StepShape:
    """A sequence decodes once all that it was admitted with is computed."""
    decodes = [s for s in chunks if s.computed >= s.admitted_tokens]
    prefills = [(s.computed, chunk) for s, chunk in chunks.items() if s not in decodes]
    return StepShape(
        sum(chunk for _, chunk in prefills),
        sum(chunk * (past + chunk / 2) for past, chunk in prefills),
        len(decodes),
        sum(s.tokens for s in decodes),
    )
