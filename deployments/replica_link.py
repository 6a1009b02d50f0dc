"""The ingress's end of the worker protocol: one connection to one replica, for all its sequences."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping

import grpc

from cluster.fading_sum import FadingSum
from cluster.policy import ReplicaSnapshot, StepSpeed
from deployments.block_feed import BlockNews
from deployments.directory import ReplicaRecord, WorkerAddress
from deployments.policies.charging import Charge
from deployments.policies.prefix_index import PrefixIndex
from deployments.sequence_stream import NO_FORECAST, Forecast, Loss, SequenceStream
from deployments.worker_codec import MAX_MESSAGE_BYTES, decode_output, encode_submit
from deployments.worker_server import AUTHORIZATION, PROTOCOL, machine_boot_id
from deployments.worker_state import decode_blocks, decode_speed, decode_state
from llama31.engine import EngineRequest, EngineState
from llama31.prefix_blocks import ROUTING_BLOCK_TOKENS
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


class ReplicaLink:
    """Connect and Watch to one replica. Lives until the replica goes away, then is thrown away."""

    def __init__(self, record: ReplicaRecord, token: str, ingress_id: str, epoch: int, index: PrefixIndex) -> None:
        assert record.address is not None
        self.record = record
        self.state = EngineState()
        self.speed: StepSpeed | None = None
        # Whether the index follows what its prefix cache holds.
        self.tells_blocks = False
        self._index = index
        self._reported_s = time.monotonic()
        self.price = Charge()
        self.became_ready = asyncio.Event()
        self.became_draining = asyncio.Event()
        self._takes_new = True
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
        self._prefill_tokens = 0
        self._recent_tokens = FadingSum()

    @property
    def is_ready(self) -> bool:
        """Whether the replica greeted us, is still there and takes new sequences."""
        return self.became_ready.is_set() and self.alive and self._takes_new

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
            prefill_tokens=max(self.state.prefill_tokens, self._prefill_tokens),
            age_s=time.monotonic() - self._reported_s,
            speed=self.speed,
            recent_tokens=self._recent_tokens.at(time.monotonic()),
        )

    def submit(
        self,
        request: EngineRequest,
        attempt: int,
        deadline_in_ms: int,
        trace: Mapping[str, str] | None = None,
        forecast: Forecast = NO_FORECAST,
    ) -> SequenceStream:
        """Gives a sequence to the replica; `trace` is the W3C context that its span belongs to."""
        stream = SequenceStream(request, attempt, self, forecast)
        if not self.alive:
            stream.lose("closed")
            return stream
        message = encode_submit(request)
        message.attempt = attempt
        message.deadline_in_ms = deadline_in_ms
        message.trace.update(trace or {})
        self._streams[request.request_id] = stream
        self._outstanding_tokens += _most_tokens(request)
        self._prefill_tokens += stream.prefill_tokens
        self._recent_tokens.add(len(request.prompt_token_ids), time.monotonic())
        if self.tells_blocks:
            stream.index_ticket = self._index.expect(self.record.replica_id, forecast.blocks)
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
        streams, self._streams = self._streams, {}
        self._outstanding_tokens = self._prefill_tokens = 0
        self.tells_blocks = False
        self._index.forget(self.record.replica_id)
        for stream in streams.values():
            stream.lose(loss)
        log.warning("replica %s: %s, %d open sequences", self.record.replica_id, cause, len(streams))

    def _forget(self, request_id: str) -> SequenceStream | None:
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            self._outstanding_tokens -= _most_tokens(stream.request)
            self._recent_tokens.add(stream.received_tokens, time.monotonic())
            self._settle(stream)
        return stream

    def _settle(self, stream: SequenceStream) -> None:
        """Its prompt is computed, or never will be."""
        self._prefill_tokens -= stream.prefill_tokens
        stream.prefill_tokens = 0
        if stream.index_ticket:
            self._index.settle(stream.index_ticket)
            stream.index_ticket = 0

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
                self.tells_blocks = response.welcome.prefix_block_tokens == ROUTING_BLOCK_TOKENS
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
        while True:
            call = stub.Watch(pb.WatchRequest(ingress_id=self._ingress_id), metadata=self._metadata)
            updates, heard, missed = aiter(call), 0, False
            while not missed:
                async with asyncio.timeout(SILENCE_S):
                    message = await anext(updates, None)
                if message is None:
                    raise _StreamEnded
                self.state, self.speed = decode_state(message), decode_speed(message)
                # One that drains finishes what it has, one whose engine failed does not.
                self._takes_new = message.ready or message.draining
                if message.draining:
                    self.became_draining.set()
                self._reported_s = time.monotonic()
                if message.block_event_sequence:
                    heard += 1
                    missed = message.block_event_sequence != heard
                    self._hear_blocks(decode_blocks(message))
                self._index.reported(self.record.replica_id)
            # A new stream begins with a snapshot.
            log.warning("replica %s: news of its blocks are missing", self.record.replica_id)
            call.cancel()

    def _hear_blocks(self, news: BlockNews) -> None:
        replica_id = self.record.replica_id
        if news.is_snapshot:
            self._index.snapshot(replica_id, news.changes.stored)
        else:
            self._index.drop(replica_id, news.changes.dropped)
            self._index.store(replica_id, news.changes.stored)

    def _deliver(self, message: pb.Output) -> None:
        stream = self._streams.get(message.request_id)
        if stream is None or stream.attempt != message.attempt:
            return
        output = decode_output(message)
        if output.is_last:
            self._forget(message.request_id)
        elif stream.prefill_tokens:
            self._settle(stream)
            stream.forecast.on_first_token()
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
