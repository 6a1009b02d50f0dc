"""An engine without weights: exact answers at exact times, for tests and benchmarks."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llama31.block_table import BlockTable
from llama31.chat import FinishReason, TokenColumns
from llama31.engine import EngineOutput, EngineRequest, EngineState, MeasuredStep, RankReport, RankVitals
from llama31.errors import DuplicateRequest, EngineFailed
from llama31.prefix_blocks import block_hashes


def echo(request: EngineRequest) -> Sequence[int]:
    """Answers with the prompt's own token ids."""
    return tuple(request.prompt_token_ids)


@dataclass(frozen=True, slots=True)
class Script:
    """What the engine plays. `fail_at_step` raises as a dying engine would, after that many steps.

    With `prefix_cache_tokens` prompts are found again, and the least recently used ones dropped; cached or not,
    a prompt takes no time.
    """

    answer: Callable[[EngineRequest], Sequence[int]] = echo
    step_s: float = 0.0
    load_s: float = 0.0
    max_running: int = 256
    kv_tokens_total: int = 1 << 20
    prefix_cache_tokens: int = 0
    fail_at_step: int | None = None


# As vLLM's.
CACHE_BLOCK_TOKENS = 16


class PromptCache:
    """Which prompts would be found again: whole blocks, the least recently used are dropped, ends first."""

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity_blocks = capacity_tokens // CACHE_BLOCK_TOKENS
        self._recent: OrderedDict[int, None] = OrderedDict()
        self.table = BlockTable(CACHE_BLOCK_TOKENS)

    def use(self, request: EngineRequest) -> int:
        """Tokens of the prompt that were there; the last one is always computed. All of it is there from now on."""
        ids = request.prompt_token_ids
        keys = block_hashes(ids, request.cache_salt, CACHE_BLOCK_TOKENS)[: self._capacity_blocks]
        found = next((index for index, key in enumerate(keys) if key not in self._recent), len(keys))
        new = keys[found:]
        # One at a time: a later block of a broken chain may be there still.
        for index, key in enumerate(new, found):
            if key not in self._recent:
                part = ids[index * CACHE_BLOCK_TOKENS : (index + 1) * CACHE_BLOCK_TOKENS]
                self.table.store([key], keys[index - 1] if index else None, part, request.cache_salt)
        for key in reversed(keys):
            self._recent[key] = None
            self._recent.move_to_end(key)
        while len(self._recent) > self._capacity_blocks:
            self.table.remove([self._recent.popitem(last=False)[0]])
        return min(found * CACHE_BLOCK_TOKENS, len(ids) - 1)


@dataclass(slots=True)
class _Sequence:
    request: EngineRequest
    answer: Sequence[int]
    emitted: int = 0
    cached_tokens: int = 0


class ScriptedEngine:
    """Continuous batching without a model: every running sequence gains one token a step."""

    def __init__(self, script: Script | None = None) -> None:
        self._script = script or Script()
        self._waiting: dict[str, _Sequence] = {}
        self._running: dict[str, _Sequence] = {}
        self._ended: list[EngineOutput] = []
        self._work = asyncio.Event()
        self._next_step_at_s = 0.0
        self._steps_total = 0
        self._prompt_tokens_total = 0
        self._output_tokens_total = 0
        self._cached_tokens_total = 0
        self._cache = PromptCache(self._script.prefix_cache_tokens) if self._script.prefix_cache_tokens else None

    async def start(self) -> None:
        """Takes the scripted loading time."""
        await asyncio.sleep(self._script.load_s)

    def submit(self, request: EngineRequest) -> None:
        """Queues a sequence."""
        if request.request_id in self._waiting or request.request_id in self._running:
            raise DuplicateRequest(request.request_id)
        emitted = len(request.output_token_ids)
        self._waiting[request.request_id] = _Sequence(request, self._script.answer(request), emitted)
        self._work.set()

    def cancel(self, request_id: str) -> None:
        """Ends a sequence at once."""
        sequence = self._waiting.pop(request_id, None) or self._running.pop(request_id, None)
        if sequence is not None:
            self._ended.append(EngineOutput(request_id, TokenColumns(), FinishReason.ABORTED))
            self._work.set()

    async def next_step(self) -> list[EngineOutput]:
        """Plays one step: paced by `step_s`, at once when only endings wait."""
        while not (self._waiting or self._running or self._ended):
            self._work.clear()
            await self._work.wait()
        if self._waiting or self._running:
            await self._pace()
        if self._script.fail_at_step is not None and self._steps_total >= self._script.fail_at_step:
            raise EngineFailed("the scripted engine was told to fail")
        outputs, self._ended = self._ended, []
        outputs.extend(self._step())
        return outputs

    def state(self) -> EngineState:
        """Counters of the script."""
        waiting_tokens = sum(len(s.request.prompt_token_ids) for s in self._waiting.values())
        held = sum(len(s.request.prompt_token_ids) + s.emitted for s in self._running.values())
        return EngineState(
            running=len(self._running),
            waiting=len(self._waiting),
            waiting_prompt_tokens=waiting_tokens,
            prefill_tokens=waiting_tokens,
            kv_tokens_used=held,
            kv_tokens_total=self._script.kv_tokens_total,
            steps_total=self._steps_total,
            prompt_tokens_total=self._prompt_tokens_total,
            prefix_query_tokens_total=self._prompt_tokens_total if self._cache else 0,
            cached_prompt_tokens_total=self._cached_tokens_total,
            computed_prompt_tokens_total=self._prompt_tokens_total - self._cached_tokens_total,
            output_tokens_total=self._output_tokens_total,
        )

    def blocks(self) -> BlockTable | None:
        """Of the scripted cache."""
        return self._cache.table if self._cache else None

    def take_steps(self) -> tuple[MeasuredStep, ...]:
        """The pace of a script says nothing."""
        return ()

    def ranks(self) -> tuple[RankReport, ...]:
        """A script has no ranks."""
        return ()

    def rank_vitals(self) -> tuple[RankVitals, ...]:
        """A script has no ranks."""
        return ()

    async def close(self) -> None:
        """Forgets everything."""
        self._waiting.clear()
        self._running.clear()

    async def _pace(self) -> None:
        """Steps start `step_s` apart while there is work, whatever the step itself took."""
        now_s = asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, self._next_step_at_s - now_s))
        self._next_step_at_s = max(now_s, self._next_step_at_s) + self._script.step_s

    def _step(self) -> list[EngineOutput]:
        for request_id in list(self._waiting):
            if len(self._running) >= self._script.max_running:
                break
            sequence = self._running[request_id] = self._waiting.pop(request_id)
            self._prompt_tokens_total += len(sequence.request.prompt_token_ids)
            if self._cache is not None:
                sequence.cached_tokens = self._cache.use(sequence.request)
                self._cached_tokens_total += sequence.cached_tokens
        self._steps_total += 1
        outputs = [self._advance(sequence) for sequence in self._running.values()]
        for output in outputs:
            if output.is_last:
                del self._running[output.request_id]
        return outputs

    def _advance(self, sequence: _Sequence) -> EngineOutput:
        token = sequence.answer[sequence.emitted : sequence.emitted + 1]
        sequence.emitted += 1
        self._output_tokens_total += len(token)
        finish = None
        if sequence.emitted >= len(sequence.answer):
            finish = FinishReason.END_OF_TURN
        elif sequence.emitted >= sequence.request.limits.max_output_tokens:
            finish = FinishReason.MAX_OUTPUT_TOKENS
        columns = TokenColumns(ids=tuple(token))
        if sequence.request.top_logprobs is not None:
            columns = TokenColumns(ids=tuple(token), logprobs=(0.0,) * len(token))
        prompt = _scored_prompt(sequence.request) if sequence.emitted == 1 else None
        cached = sequence.cached_tokens
        return EngineOutput(sequence.request.request_id, columns, finish, cached, prompt=prompt)


def _scored_prompt(request: EngineRequest) -> TokenColumns | None:
    """Token i has -i as its log-probability, and as alternatives itself and the ids after it, each less likely."""
    top = request.prompt_top_logprobs
    if top is None:
        return None
    ids = tuple(request.prompt_token_ids)
    return TokenColumns(
        ids,
        logprobs=tuple(-float(i) for i in range(len(ids))),
        top_k=top,
        top_ids=tuple(token + rank for token in ids for rank in range(top)),
        top_logprobs=tuple(-float(i + rank) for i in range(len(ids)) for rank in range(top)),
    )
