"""How many tokens a second does one replica give when all requests are there from the start?"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from cluster.policy import StepCost, StepShape
from llama31.errors import ConfigInvalid


@dataclass(frozen=True, slots=True)
class OfflineLoad:
    """Equal requests, all queued at once; `max_running` of them hold KV room to their end, so none is preempted."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    max_running: int
    max_step_tokens: int


@dataclass(frozen=True, slots=True)
class OfflineResult:
    """`output_tokens_s` over the whole run, with its ramp and its tail; `running` is the most at the same time."""

    seconds: float
    output_tokens_s: float
    running: int
    steps: int


def run_offline(cost: StepCost, load: OfflineLoad) -> OfflineResult:
    """Every step of the run, decodes first, the rest of the step filled with chunks of prompts.

    Raises: ConfigInvalid where not even one request fits the KV cache.
    """
    whole_tokens = load.prompt_tokens + load.output_tokens
    room = min(load.max_running, load.requests, cost.kv_tokens // whole_tokens)
    if room < 1:
        raise ConfigInvalid(f"{cost.kv_tokens:,} KV tokens cannot hold one request of {whole_tokens:,}")
    prefill = _Prefill(load.requests, load.prompt_tokens)
    # Requests that decode, as (step of their last token, how many), earliest first.
    ends: deque[tuple[int, int]] = deque()
    seconds, step, decodes, context_tokens = 0.0, 0, 0, 0
    while decodes or prefill.left:
        budget = min(load.max_step_tokens - decodes, (room - decodes) * load.prompt_tokens - prefill.done_tokens)
        chunk, pairs, finished = prefill.take(max(0, budget))
        seconds += cost.step_s(StepShape(chunk, pairs, decodes, context_tokens))
        context_tokens += decodes
        while ends and ends[0][0] == step:
            count = ends.popleft()[1]
            decodes -= count
            context_tokens -= count * (whole_tokens - 1)
        if finished and load.output_tokens > 1:
            ends.append((step + load.output_tokens - 1, finished))
            decodes += finished
            context_tokens += finished * load.prompt_tokens
        step += 1
    return OfflineResult(seconds, load.requests * load.output_tokens / seconds, room, step)


class _Prefill:
    """The prompts that are still to be computed; at most one of them is begun."""

    def __init__(self, requests: int, prompt_tokens: int) -> None:
        self.left, self.done_tokens = requests, 0
        self._prompt_tokens = prompt_tokens

    def take(self, budget_tokens: int) -> tuple[int, float, int]:
        """Computes so many tokens: `(tokens, pairs, prompts finished)`."""
        tokens, pairs, finished = 0, 0.0, 0
        while budget_tokens > tokens and self.left:
            chunk = min(budget_tokens - tokens, self._prompt_tokens - self.done_tokens)
            pairs += chunk * (self.done_tokens + chunk / 2)
            self.done_tokens += chunk
            tokens += chunk
            if self.done_tokens == self._prompt_tokens:
                self.done_tokens, self.left, finished = 0, self.left - 1, finished + 1
        return tokens, pairs, finished
