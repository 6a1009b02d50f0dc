"""The ingress's end of the worker protocol: one connection to one replica, for all its sequences."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Literal

import grpc

from cluster.policy import ReplicaSnapshot
from deployments.directory import ReplicaRecord, WorkerAddress
from deployments.policies.charging import Charge
from deployments.worker_codec import MAX_MESSAGE_BYTES, decode_output, decode_state, encode_submit
from deployments.worker_server import AUTHORIZATION, PROTOCOL, machine_boot_id
from llama31.chat import ResourceUse, TokenColumns
from llama31.engine import EngineOutput, EngineRequest, EngineState
from llama31.errors import StreamInterrupted
from llama31.worker.v1 import worker_service_pb2 as pb
from llama31.worker.v1 import worker_service_pb2_grpc as pb_grpc

log = logging.getLogger("llama31.link")

# A replica that says nothing for this long is taken for dead; heartbeats come every 0.5 s.
SILENCE_S = 10.0
# Streams that one turn of the event loop writes for. grpc.aio accepts one new call a turn: with hundreds of
# writes in each, a burst of requests would wait for seconds.
WAKE_AT_ONCE = 32
# See `rest_s`. Timers of the event loop count milliseconds.
BUSY_S = 0.001
MAX_REST_S = 0.010

# Why a sequence lost its replica, for a metric and for the client, who hears no more than this.
Loss = Literal["connection_lost", "closed", "silent", "gap", "engine_failed", "draining"]


class SequenceStream:
    """The outputs of one sequence; what arrives while nobody reads is merged, never queued up."""

    def __init__(self, request: EngineRequest, attempt: int, link: ReplicaLink) -> None:
        self.request = request
        self.attempt = attempt
        # As an index in the whole output.
        self.received_tokens = len(request.output_token_ids)
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
        if output.tokens.ids and first_token != self.received_tokens:
            words = "replica %s: token %d was expected, token %d came"
            log.warning(words, self.replica_id, self.received_tokens, first_token)
            self.lose("gap")
            return
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


class ReplicaLink:
    """Connect and Watch to one replica. Lives until the replica goes away, then is thrown away."""

    def __init__(self, record: ReplicaRecord, token: str, ingress_id: str, epoch: int) -> None:
        assert record.address is not None
        self.record = record
        self.state = EngineState()
        self.price = Charge()
        self.became_ready = asyncio.Event()
        self.became_draining = asyncio.Event()
        self.alive = True
        self._ingress_id = ingress_id
        self._epoch = epoch
        self._metadata = ((AUTHORIZATION, f"Bearer {token}"),)
        self._channel = grpc.aio.insecure_channel(dial_target(record.address), options=CHANNEL_OPTIONS)
        self._outgoing: deque[pb.ConnectRequest] = deque()
        self._has_outgoing = asyncio.Event()
        self._streams: dict[str, SequenceStream] = {}
        # Of all streams: every submit asks for it, so a sum each time would cost the square of a burst.
        self._outstanding_tokens = 0

    @property
    def is_ready(self) -> bool:
        """Whether the replica greeted us and is still there."""
        return self.became_ready.is_set() and self.alive

    @property
    def draining(self) -> bool:
        """Whether it takes nothing new."""
        return self.became_draining.is_set()

    def snapshot(self) -> ReplicaSnapshot:
        """What the router may know now."""
        return ReplicaSnapshot(
            replica_id=self.record.replica_id,
            ready=self.is_ready,
            draining=self.draining,
            running=self.state.running,
            waiting=self.state.waiting,
            waiting_prompt_tokens=self.state.waiting_prompt_tokens,
            kv_tokens_used=self.state.kv_tokens_used,
            kv_tokens_total=self.state.kv_tokens_total,
            outstanding_tokens=self._outstanding_tokens,
        )

    def submit(
        self, request: EngineRequest, attempt: int, deadline_in_ms: int, trace: Mapping[str, str] | None = None
    ) -> SequenceStream:
        """Gives a sequence to the replica; `trace` is the W3C context that its span belongs to."""
        stream = SequenceStream(request, attempt, self)
        if not self.alive:
            stream.lose("closed")
            return stream
        message = encode_submit(request)
        message.attempt = attempt
        message.deadline_in_ms = deadline_in_ms
        message.trace.update(trace or {})
        self._streams[request.request_id] = stream
        self._outstanding_tokens += _most_tokens(request)
        self._next_request(message.ByteSize()).submits.append(message)
        return stream

    def cancel(self, request_id: str) -> None:
        """Ends a sequence that nobody waits for any more."""
        stream = self._forget(request_id)
        if stream is not None and self.alive:
            cancel = pb.Cancel(request_id=request_id, attempt=stream.attempt)
            self._next_request(cancel.ByteSize()).cancels.append(cancel)

    def equals(self, other: ReplicaLink) -> bool:
        """Whether both compute the same function."""
        return self.record.digest == other.record.digest

    def hand_over(self) -> None:
        """Ends every sequence here, so that each goes on elsewhere."""
        for request_id, stream in tuple(self._streams.items()):
            self.cancel(request_id)
            stream.lose("draining")

    async def run(self) -> None:
        """Talks to the replica until either stream ends; every open sequence then hears of it."""
        stub = pb_grpc.WorkerServiceStub(self._channel)
        loss: Loss = "closed"
        cause = "the replica closed the connection"
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read_outputs(stub))
                tasks.create_task(self._read_state(stub))
        except* grpc.aio.AioRpcError as group:
            first = group.exceptions[0]
            assert isinstance(first, grpc.aio.AioRpcError)
            loss, cause = "connection_lost", f"connection lost: {first.code().name}"
        except* TimeoutError:
            loss, cause = "silent", f"no heartbeat for {SILENCE_S:g} s"
        except* _StreamEnded:
            pass
        finally:
            self._die(loss, cause)
            await self._channel.close()

    def _die(self, loss: Loss, cause: str) -> None:
        self.alive = False
        streams, self._streams, self._outstanding_tokens = self._streams, {}, 0
        for stream in streams.values():
            stream.lose(loss)
        log.warning("replica %s: %s, %d open sequences", self.record.replica_id, cause, len(streams))

    def _forget(self, request_id: str) -> SequenceStream | None:
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            self._outstanding_tokens -= _most_tokens(stream.request)
        return stream

    async def _send_commands(self) -> AsyncIterator[pb.ConnectRequest]:
        yield pb.ConnectRequest(hello=pb.Hello(ingress_id=self._ingress_id, epoch=self._epoch, protocol=PROTOCOL))
        while True:
            await self._has_outgoing.wait()
            request = self._outgoing.popleft()
            if not self._outgoing:
                self._has_outgoing.clear()
            yield request

    def _next_request(self, more_bytes: int = 0) -> pb.ConnectRequest:
        """The message to add to: one with room for so much that has not gone out yet."""
        if not self._outgoing or self._outgoing[-1].ByteSize() + more_bytes > MAX_MESSAGE_BYTES:
            self._outgoing.append(pb.ConnectRequest())
            self._has_outgoing.set()
        return self._outgoing[-1]

    async def _read_outputs(self, stub: pb_grpc.WorkerServiceStub) -> None:
        call = stub.Connect(self._send_commands(), metadata=self._metadata)
        async for response in call:
            if response.HasField("welcome"):
                self.became_ready.set()
            self.price = Charge(response.price_accelerator_seconds, response.price_joules)
            began_s = time.monotonic()
            for number, message in enumerate(response.outputs, 1):
                self._deliver(message)
                if number % WAKE_AT_ONCE == 0:
                    await asyncio.sleep(0)
            # Those that were woken last write in this turn.
            await asyncio.sleep(0)
            if pause_s := rest_s(time.monotonic() - began_s):
                await asyncio.sleep(pause_s)
            self._next_request().ack.sequence = response.sequence
        raise _StreamEnded

    async def _read_state(self, stub: pb_grpc.WorkerServiceStub) -> None:
        call = stub.Watch(pb.WatchRequest(ingress_id=self._ingress_id), metadata=self._metadata)
        updates = aiter(call)
        while True:
            async with asyncio.timeout(SILENCE_S):
                message = await anext(updates, None)
            if message is None:
                raise _StreamEnded
            self.state = decode_state(message)
            if message.draining:
                self.became_draining.set()

    def _deliver(self, message: pb.Output) -> None:
        stream = self._streams.get(message.request_id)
        if stream is None or stream.attempt != message.attempt:
            return
        output = decode_output(message)
        if output.is_last:
            self._forget(message.request_id)
        stream.put(message.first_token, output)


class _StreamEnded(Exception):
    """The replica ended a stream in good order."""


CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.enable_retries", 0),
    # One connection per link: an epoch belongs to one ingress process and one replica.
    ("grpc.use_local_subchannel_pool", 1),
)


def _most_tokens(request: EngineRequest) -> int:
    """What it may come to hold."""
    return len(request.prompt_token_ids) + request.limits.max_output_tokens


def rest_s(busy_s: float) -> float:
    """How long to wait before the next message is asked for, when writing the last one took `busy_s`.

    A process that is busy writing rests as long as it worked: what comes meanwhile is merged at the replica, so
    messages get larger instead of later, and half of the loop's time stays for new calls.
    """
    return min(busy_s, MAX_REST_S) if busy_s >= BUSY_S else 0.0


def dial_target(address: WorkerAddress) -> str:
    """The unix socket on the replica's own machine, its node address from elsewhere."""
    return f"unix:{address.unix_path}" if address.boot_id == machine_boot_id() else address.target


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
