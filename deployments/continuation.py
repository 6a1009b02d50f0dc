"""How does a sequence go on when its replica is lost? From the tokens it emitted, on another one of equal weights.

A crash, a silence, a replica that moves its sequences away and one that drains are all the same here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from deployments.sequence_stream import Loss, SequenceStream
from llama31.chat import ResourceUse, sum_resources
from llama31.engine import EngineOutput, EngineRequest
from llama31.errors import Draining, NoReadyReplica, StreamInterrupted

log = logging.getLogger("llama31.continuation")

# A lost connection may come back with the same replica behind it; until then another one is asked.
AVOID_S = 2.0
# So many replicas in a row that were lost before they emitted a token of it: the request itself may be what ends them.
MAX_FRUITLESS = 3

# Gives a sequence to a replica; arguments: the sequence, the attempt, a replica to avoid, the digest it must have.
Submit = Callable[[EngineRequest, int, str | None, int | None], SequenceStream]


class ContinuingStream:
    """One sequence over all the replicas that compute it in turn. Reads like a `SequenceStream` that is not lost."""

    def __init__(
        self,
        request: EngineRequest,
        submit: Submit,
        wait_fleet: Callable[[], Awaitable[None]],
        patience_s: float,
        on_loss: Callable[[Loss], None],
        on_gap: Callable[[float], None],
    ) -> None:
        """`wait_fleet` returns when another answer of `submit` is possible. Raises: NoReadyReplica."""
        self._request = request
        self._submit = submit
        self._wait_fleet = wait_fleet
        self._patience_s = patience_s
        self._on_loss = on_loss
        self._on_gap = on_gap
        self._emitted: list[int] = []
        self._first: EngineOutput | None = None
        self._emitted_at_submit = 0
        self._fruitless = 0
        self._last_s = self._lost_s = 0.0
        self._loss: StreamInterrupted | None = None
        self._lost_resources: list[ResourceUse | None] = []
        self._woken = asyncio.Event()
        self._stream = submit(request, 0, None, None)
        self._digest = self._stream.digest

    @property
    def replica_id(self) -> str:
        """Who computes it now."""
        return self._stream.replica_id

    async def next(self) -> EngineOutput | None:
        """Everything that came since the last call, as one output; None after `wake`. Raises: StreamInterrupted."""
        while True:
            # Kept over calls: whoever waits here may give up waiting and come again.
            if self._loss is not None and not await self._resubmit(self._loss):
                return None
            try:
                output = await self._stream.next()
            except StreamInterrupted as loss:
                self._lose(loss)
                continue
            if output is None:
                return None
            output = self._account(output)
            self._take(output)
            if not output.error:
                return output
            # The engine's own words may name processes, hosts and files: they are for the log, on one line.
            words = "replica %s, request %s: the engine failed: %.300r"
            log.warning(words, self.replica_id, self._request.request_id, output.error)
            self._stream.lose("draining" if output.error.startswith(Draining.reason) else "engine_failed")
            if output.tokens.ids:
                return replace(output, error="")

    def wake(self) -> None:
        """Ends a wait although nothing came."""
        self._woken.set()
        self._stream.wake()

    def cancel(self) -> None:
        """Tells the replica to stop; idempotent, also after the end."""
        self._stream.cancel()

    def resources(self) -> ResourceUse | None:
        """What all its replicas charged it by now; None where nobody says."""
        return sum_resources([*self._lost_resources, self._stream.resources()])

    def _account(self, output: EngineOutput) -> EngineOutput:
        """Queue, prefill and cached tokens are those of the prompt, not of what was computed again."""
        first = self._first
        if first is None:
            self._first = output if output.tokens.ids else None
            return output
        if not self._stream.attempt:
            return output
        cached = first.cached_prompt_tokens
        return replace(output, cached_prompt_tokens=cached, queued_s=first.queued_s, prefill_s=first.prefill_s)

    def _take(self, output: EngineOutput) -> None:
        if not output.tokens.ids:
            return
        self._emitted.extend(output.tokens.ids)
        now_s = asyncio.get_running_loop().time()
        if self._lost_s and self._last_s:
            self._on_gap(now_s - self._last_s)
        self._last_s, self._lost_s = now_s, 0.0

    def _lose(self, loss: StreamInterrupted) -> None:
        cause = self._stream.loss
        self._on_loss(cause)
        self._stream.cancel()
        if cause != "draining":
            self._fruitless = self._fruitless + 1 if len(self._emitted) == self._emitted_at_submit else 0
        self._loss, self._lost_s = loss, asyncio.get_running_loop().time()

    async def _resubmit(self, loss: StreamInterrupted) -> bool:
        """Asks until a replica takes it; False: woken before one did. Raises: the loss, if none did for so long."""
        if self._fruitless >= MAX_FRUITLESS:
            log.warning("request %s was lost by %d replicas in a row", self._request.request_id, MAX_FRUITLESS)
            raise loss
        emitted = tuple(self._emitted)
        scored = None if emitted else self._request.prompt_top_logprobs
        attempt, loop = self._stream.attempt + 1, asyncio.get_running_loop()
        # A name of its own: the replica may be the same one, not yet done with what it lost.
        name = f"{self._request.request_id}.{attempt}"
        request = replace(self._request, request_id=name, output_token_ids=emitted, prompt_top_logprobs=scored)
        while not self._woken.is_set():
            waited_s = loop.time() - self._lost_s
            avoid = loss.replica_id if waited_s < AVOID_S else None
            try:
                stream = self._submit(request, attempt, avoid, self._digest)
            except NoReadyReplica:
                if waited_s >= self._patience_s:
                    raise loss from None
                await self._wait(min(AVOID_S, self._patience_s - waited_s))
            else:
                self._lost_resources.append(self._stream.resources())
                self._stream, self._loss, self._emitted_at_submit = stream, None, len(emitted)
                words = "request %s goes on after %d tokens: replica %s is lost (%s), now %s"
                log.info(words, request.request_id, len(emitted), loss.replica_id, loss.cause, self.replica_id)
                return True
        return False

    async def _wait(self, limit_s: float) -> None:
        """Until the fleet changed, somebody wakes this, or so long."""
        waits = [asyncio.ensure_future(self._wait_fleet()), asyncio.ensure_future(self._woken.wait())]
        try:
            await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
