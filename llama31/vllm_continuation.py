"""How does a sequence go on in this engine from tokens that another one emitted, as if nothing had happened?

In vLLM's terms it is a preempted request that returns, on another replica. A new request begins with output tokens:
the scheduler counts them as output (limits, grammar), and so do the ranks (penalties, minimum, positions). Every
randomly drawn token has a generator of its own, keyed by the seed and its index, so nothing is fast-forwarded:
model runner V2 (GPUs) draws that way by itself, V1 (CPUs) is taught to here.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
import vllm
from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus
from vllm.v1.worker import gpu_model_runner
from vllm.v1.worker.gpu_input_batch import CachedRequestState

# In SamplingParams.extra_args, which vLLM carries to the scheduler and to every rank without looking into it.
EMITTED = "llama31_emitted_token_ids"
WRITTEN_FOR = "0.32."

if not vllm.__version__.startswith(WRITTEN_FOR):
    raise ImportError(f"continuation is written for vLLM {WRITTEN_FOR}x, this is {vllm.__version__}")


class ContinuingScheduler(Scheduler):
    """The scheduler without look-ahead, which the CPU platform uses."""

    def add_request(self, request: Request) -> None:
        """Takes a request, at its start or after tokens emitted elsewhere."""
        begin_after_emitted(request)
        super().add_request(request)

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        return advance_grammar(self, request, super()._handle_blocked_waiting_request(request))


class ContinuingAsyncScheduler(AsyncScheduler):
    """The scheduler that plans a step while the one before it runs."""

    def add_request(self, request: Request) -> None:
        """Takes a request, at its start or after tokens emitted elsewhere."""
        begin_after_emitted(request)
        super().add_request(request)

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        return advance_grammar(self, request, super()._handle_blocked_waiting_request(request))


def scheduler_for(config: VllmConfig) -> type[Scheduler]:
    """The scheduler that vLLM would take for this configuration, able to continue."""
    return ContinuingAsyncScheduler if config.scheduler_config.async_scheduling else ContinuingScheduler


def begin_after_emitted(request: Request) -> None:
    """Makes what was emitted elsewhere this request's output so far."""
    if emitted := emitted_tokens(request.sampling_params):
        request.append_output_token_ids(list(emitted))


def advance_grammar(scheduler: Scheduler, request: Request, may_go_on: bool) -> bool:
    """Shows a grammar that has just been compiled what was emitted under it elsewhere."""
    if not may_go_on or request.status != RequestStatus.WAITING:
        return may_go_on
    emitted = emitted_tokens(request.sampling_params)
    if emitted and not scheduler.structured_output_manager.accept_tokens(request, list(emitted)):
        # As for a grammar that does not compile: this request ends with an error, the engine goes on.
        scheduler.grammar_compile_error_reqs.add(request.request_id)
        return False
    return True


def emitted_tokens(sampling_params: Any) -> Sequence[int]:
    """What other replicas emitted of a sequence; empty for one that begins."""
    extra: dict[str, Sequence[int]] = (sampling_params and sampling_params.extra_args) or {}
    return extra.get(EMITTED, ())


class ContinuedState(CachedRequestState):
    """What a rank of model runner V1 keeps of a sequence, from its first emitted token on."""

    generator: torch.Generator | None

    def __post_init__(self) -> None:
        """`output_token_ids` comes empty for a request that is new to this rank."""
        super().__post_init__()
        if not self.output_token_ids:
            self.output_token_ids.extend(emitted_tokens(self.sampling_params))
        if self.generator is not None:
            self.generator = KeyedGenerator(self.generator.device, self.sampling_params.seed, self.output_token_ids)


class KeyedGenerator(torch.Generator):
    """Random numbers that depend on the seed and on how many tokens were emitted, on nothing else."""

    def __new__(cls, device: torch.device, seed: int, emitted: Sequence[int]) -> KeyedGenerator:
        """A generator of that device."""
        made: KeyedGenerator = super().__new__(cls, device=device)
        return made

    def __init__(self, device: torch.device, seed: int, emitted: Sequence[int]) -> None:
        """`emitted` is the sequence's own list, which grows."""
        self._seed = seed
        self._emitted = emitted

    def rewind(self) -> None:
        """To the beginning of the numbers of the next token."""
        key = b"%d/%d" % (self._seed, len(self._emitted))
        self.manual_seed(int.from_bytes(blake2b(key, digest_size=8).digest()))

    def get_offset(self) -> int:
        """vLLM takes back what a prefill chunk drew; here every token's numbers begin anew, so nothing was taken."""
        return 0

    def set_offset(self, offset: int) -> None:
        """Nothing to take back."""


def teach_runner(runner: Any) -> None:
    """Makes the sequences of a model runner V1 continue exactly. Call it before its first step."""
    gpu_model_runner.CachedRequestState = ContinuedState
    sample = runner._sample

    def sample_keyed(*args: Any, **kwargs: Any) -> Any:
        for generator in runner.input_batch.generators.values():
            generator.rewind()
        return sample(*args, **kwargs)

    runner._sample = sample_keyed
