"""What is an engine? Token ids in, token ids out, one batch of outputs per engine step.

The two implementations are `scripted_engine.ScriptedEngine` (no weights) and
`vllm_engine.VllmEngine`; nothing else in the system knows which one it talks to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from llama31.block_table import BlockTable
from llama31.chat import Constraint, FinishReason, ResourceUse, TokenColumns


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to pick a token. Every value is explicit: the ingress has resolved defaults and the seed."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Limits:
    """When the engine must stop by itself. Stop *strings* belong to the ingress."""

    max_output_tokens: int
    min_output_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One sequence. `top_logprobs` None: no log-probabilities; 0: of the chosen token only.

    `prompt_top_logprobs` asks the same for the tokens of the prompt. `output_token_ids` were emitted by other
    replicas: the sequence goes on after them. They count as its output in every way, but do not come again.
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    sampling: Sampling
    limits: Limits
    top_logprobs: int | None = None
    priority: int = 0
    cache_salt: str = ""
    constraint: Constraint | None = None
    prompt_top_logprobs: int | None = None
    output_token_ids: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """What one step made of one sequence; the one with `finish_reason`, `error` or `refusal` set is the last.

    `error` says what went wrong here, `refusal` what the engine does not take in the request. The first with
    tokens has `prompt` where that was to be scored; its first row is the token itself with 0. `resources` is
    what the sequence was charged so far, where the engine is metered; not every output has it.
    """

    request_id: str
    tokens: TokenColumns
    finish_reason: FinishReason | None = None
    cached_prompt_tokens: int = 0
    queued_s: float = 0.0
    prefill_s: float = 0.0
    error: str = ""
    resources: ResourceUse | None = None
    refusal: str = ""
    prompt: TokenColumns | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing more comes for this sequence."""
        return self.finish_reason is not None or bool(self.error or self.refusal)


@dataclass(frozen=True, slots=True)
class RankReport:
    """Where one rank runs, told by the rank itself; `gpu` is the number of its device on the node."""

    rank: int
    stage: int
    tp_rank: int
    node_id: str
    node_ip: str
    pid: int
    device: str
    gpu: int | None = None


@dataclass(frozen=True, slots=True)
class RankVitals:
    """How a connected rank is. `silent_s`: since its last step while there is work, else 0.

    `joules`: its board's own energy counter; None where the board has none.
    """

    rank: int
    silent_s: float
    joules: float | None


@dataclass(frozen=True, slots=True)
class EngineState:
    """The engine's own counters. `steps_total` counts scheduler steps since the start.

    Of `prefix_query_tokens_total` prompt tokens, `cached_prompt_tokens_total` were in the prefix cache;
    `computed_prompt_tokens_total` went through the model. `prefill_tokens` of prompts are neither computed yet nor,
    as far as is known, in the prefix cache: those that wait, and what is left of those in work.
    """

    running: int = 0
    waiting: int = 0
    waiting_prompt_tokens: int = 0
    kv_tokens_used: int = 0
    kv_tokens_total: int = 0
    steps_total: int = 0
    prompt_tokens_total: int = 0
    output_tokens_total: int = 0
    cached_prompt_tokens_total: int = 0
    prefix_query_tokens_total: int = 0
    computed_prompt_tokens_total: int = 0
    prefill_tokens: int = 0


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One step that followed another without a pause: what it computed, and how long after that one it ended."""

    seconds: float
    prefill_tokens: int
    running: int
    context_tokens: int


class Engine(Protocol):
    """Turns prompt tokens into output tokens. All methods run on one event loop."""

    async def start(self) -> None:
        """Loads and warms up. Raises: EngineFailed, CheckpointMissing, CheckpointCorrupt."""

    def submit(self, request: EngineRequest) -> None:
        """Takes one sequence; its outputs come from `next_step`. Raises: DuplicateRequest."""

    def cancel(self, request_id: str) -> None:
        """Ends a sequence and frees its KV. Still answered by one last output; unknown ids are ignored."""

    async def next_step(self) -> list[EngineOutput]:
        """Waits for the next outputs and returns those of one step together. Raises: EngineFailed."""

    def state(self) -> EngineState:
        """The engine's counters now; never blocks."""

    def blocks(self) -> BlockTable | None:
        """What its prefix cache holds; None before `start` and for engines that do not tell."""

    def take_steps(self) -> tuple[MeasuredStep, ...]:
        """The latest steps since the last call, oldest first; none from engines that do not measure."""

    def ranks(self) -> tuple[RankReport, ...]:
        """Where every rank runs; empty before `start` and for engines without ranks."""

    def rank_vitals(self) -> tuple[RankVitals, ...]:
        """How every connected rank is; empty where `ranks` is."""

    async def close(self) -> None:
        """Stops and frees everything; idempotent."""
