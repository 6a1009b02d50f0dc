"""How does an ingress read one sequence that a replica computes?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from deployments.policies.charging import Charge
from llama31.chat import ResourceUse, TokenColumns
from llama31.engine import EngineOutput, EngineRequest
from llama31.errors import StreamInterrupted

if TYPE_CHECKING:
    from deployments.replica_link import ReplicaLink

log = logging.getLogger("llama31.link")

Progress = Callable[[bool], None]

# Why a sequence lost its replica, for a metric and for the client, who hears no more than this.
Loss = Literal["connection_lost", "closed", "silent", "gap", "engine_failed", "draining"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is thought of a sequence when it is sent: the blocks of its prompt, of which the replica's cache has
    `cached_tokens`. `on_first_token` is called when that comes.
    """

    blocks: Sequence[int] = ()
    cached_tokens: int = 0
    on_first_token: Callable[[], None] = lambda: None


NO_FORECAST = Forecast()


class SequenceStream:
    """The outputs of one sequence; what arrives while nobody reads is merged, never queued up."""

    def __init__(
        self, request: EngineRequest, attempt: int, link: ReplicaLink, forecast: Forecast = NO_FORECAST
    ) -> None:
        self.request = request
        self.attempt = attempt
        self.forecast = forecast
        # Of prompt and emitted tokens, until its first token has come; the last one is always computed.
        given = len(request.prompt_token_ids) + len(request.output_token_ids)
        self.prefill_tokens = max(1, given - forecast.cached_tokens)
        self.index_ticket = 0
        # As an index in the whole output.
        self.received_tokens = len(request.output_token_ids)
        # Told of the first output and of the end (True), whether or not anybody reads them yet.
        self.progress: Progress | None = None
        self._link = link
        self._waiting: EngineOutput | None = None
        self._is_lost = False
        self.loss: Loss = "engine_failed"
        self._ready = asyncio.Event()
        # What the replica last said that this was charged, and its price then; no price after the end.
        self._charged: ResourceUse | None = None
        self._charged_at: Charge | None = None

    @property
    def replica_id(self) -> str:
        """Who computes this sequence."""
        return self._link.record.replica_id

    @property
    def digest(self) -> int:
        """Which function computes it."""
        return self._link.record.digest

    async def next(self) -> EngineOutput | None:
        """Everything that came since the last call, as one output; None after `wake`. Raises: StreamInterrupted."""
        await self._ready.wait()
        if self._waiting is not None:
            output, self._waiting = self._waiting, None
            if not self._is_lost:
                self._ready.clear()
            return output
        if not self._is_lost:
            self._ready.clear()
            return None
        raise StreamInterrupted(self.replica_id, self.received_tokens, self.loss)

    def wake(self) -> None:
        """Ends a wait although nothing came."""
        self._ready.set()

    def put(self, first_token: int, output: EngineOutput) -> None:
        """Takes an output from the link; a gap or a repetition breaks the stream loudly."""
        if self._is_lost:
            return
        if output.tokens.ids and first_token != self.received_tokens:
            words = "replica %s: token %d was expected, token %d came"
            log.warning(words, self.replica_id, self.received_tokens, first_token)
            self.lose("gap")
            return
        if self.progress is not None and (not self.received_tokens or output.finish_reason is not None):
            self.progress(output.finish_reason is not None)
        self.received_tokens += len(output.tokens.ids)
        self._waiting = output if self._waiting is None else join_outputs(self._waiting, output)
        self._ready.set()
        if output.resources is not None:
            self._charged = output.resources
            self._charged_at = None if output.is_last else self._link.price

    def resources(self) -> ResourceUse | None:
        """What this sequence has been charged by now; None where nobody says."""
        if self._charged is None or self._charged_at is None:
            return self._charged
        since = self._link.price.minus(self._charged_at)
        charged = self._charged
        return replace(
            charged, accelerator_s=charged.accelerator_s + since.accelerator_s, joules=charged.joules + since.joules
        )

    def lose(self, loss: Loss) -> None:
        """Nothing more will come."""
        self.loss = loss
        self._is_lost = True
        self._ready.set()

    def cancel(self) -> None:
        """Tells the replica to stop and to free the KV; idempotent, also after the end."""
        self._link.cancel(self.request.request_id)


def join_outputs(earlier: EngineOutput, later: EngineOutput) -> EngineOutput:
    """Two outputs of one sequence as if one step had made them."""
    first, second = earlier.tokens, later.tokens
    tokens = TokenColumns(
        ids=first.ids + second.ids,
        logprobs=first.logprobs + second.logprobs,
        top_k=max(first.top_k, second.top_k),
        top_ids=first.top_ids + second.top_ids,
        top_logprobs=first.top_logprobs + second.top_logprobs,
    )
    return replace(
        later,
        tokens=tokens,
        cached_prompt_tokens=max(earlier.cached_prompt_tokens, later.cached_prompt_tokens),
        queued_s=max(earlier.queued_s, later.queued_s),
        prefill_s=max(earlier.prefill_s, later.prefill_s),
        prompt=earlier.prompt or later.prompt,
    )
