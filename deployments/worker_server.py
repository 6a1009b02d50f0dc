"""The replica's end of the worker protocol: who may connect, and which step goes to whom?"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from cluster.policy import StepSpeed
from deployments.block_feed import BlockFeed
from deployments.directory import ReplicaRecord, WorkerAddress
from deployments.policies.charging import Charge
from deployments.tracing import SequenceSpan, Tracing
from deployments.worker_codec import decode_submit, encode_output, merge_outputs, split_outputs
from deployments.worker_state import encode_state
from llama31.chat import TokenColumns
from llama31.engine import Engine, EngineOutput
from llama31.errors import Draining, EngineFailed, Llama31Error
from llama31.prefix_blocks import ROUTING_BLOCK_TOKENS
from llama31.worker.v1 import worker_service_pb2 as pb
from llama31.worker.v1 import worker_service_pb2_grpc as pb_grpc

log = logging.getLogger("llama31.worker")

PROTOCOL = 3
HEARTBEAT_S = 0.5
PEER_STALL_S = 5.0
# One being read, one on its way. More would only queue up behind an ingress that is behind.
MAX_UNACKNOWLEDGED = 1
AUTHORIZATION = "authorization"
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.so_reuseport", 0),
    # An ingress pings every 10 s; a replica too busy to write between two of them would call that a flood.
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
)


class Peer:
    """One ingress: its sequences, and the outputs that wait for its writer."""

    def __init__(self, ingress_id: str, epoch: int) -> None:
        self.ingress_id = ingress_id
        self.epoch = epoch
        self.attempts: dict[str, int] = {}
        self.emitted: dict[str, int] = {}
        self.closed = False
        # Nobody waits for the welcome to be read.
        self._acknowledged = 1
        self._has_read = asyncio.Event()
        self._pending: dict[str, pb.Output] = {}
        self._ready = asyncio.Event()

    def push(self, output: EngineOutput) -> None:
        """Queues one output; while the writer is busy, outputs of one sequence become one."""
        request_id = output.request_id
        first_token = self.emitted[request_id]
        self.emitted[request_id] = first_token + len(output.tokens.ids)
        waiting = self._pending.get(request_id)
        is_only_ids = not (output.is_last or output.tokens.logprobs or output.resources)
        if waiting is not None and is_only_ids:
            # Behind a slow ingress nearly all outputs are ids for a message that waits: no message of their own.
            waiting.tokens.ids.extend(output.tokens.ids)
            return
        message = encode_output(output, self.attempts[request_id], first_token)
        if output.is_last:
            del self.attempts[request_id], self.emitted[request_id]
        self.push_message(message)

    def push_message(self, message: pb.Output) -> None:
        """Queues a ready message."""
        waiting = self._pending.get(message.request_id)
        if waiting is None or waiting.attempt != message.attempt:
            self._pending[message.request_id] = message
        else:
            merge_outputs(waiting, message)
        self._ready.set()

    def close(self) -> None:
        """Lets the writer end."""
        self.closed = True
        self._ready.set()
        self._has_read.set()

    def acknowledge(self, sequence: int) -> None:
        """The peer has read so far."""
        self._acknowledged = max(self._acknowledged, sequence)
        self._has_read.set()

    async def wait_until_read(self, sequence: int) -> None:
        """Returns once the peer has acknowledged message `sequence`: another would only queue up behind it."""
        while sequence > self._acknowledged and not self.closed:
            self._has_read.clear()
            await self._has_read.wait()

    async def take(self) -> list[pb.Output]:
        """Everything that waits, at least one output; empty when the peer is closed."""
        while not self._pending and not self.closed:
            self._ready.clear()
            await self._ready.wait()
        pending, self._pending = self._pending, {}
        return list(pending.values())


class WorkerServer(pb_grpc.WorkerServiceServicer):
    """Serves one engine to every ingress that shows the cluster token."""

    def __init__(
        self,
        engine: Engine,
        record: ReplicaRecord,
        token: str,
        on_failure: Callable[[Exception], None],
        price: Callable[[], Charge] = Charge,
        tracing: Tracing | None = None,
        speed: Callable[[], StepSpeed | None] = lambda: None,
    ) -> None:
        self._feed = BlockFeed(engine.blocks())
        self._tells_blocks = engine.blocks() is not None
        self._speed = speed
        self._engine = engine
        self._price = price
        self._record = record
        self._on_failure = on_failure
        self._peers: dict[str, Peer] = {}
        self._owner: dict[str, Peer] = {}
        self._deadlines: dict[str, asyncio.TimerHandle] = {}
        self._tracing = tracing
        self._spans: dict[str, SequenceSpan] = {}
        self._draining = False
        self._has_failed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._state_changed = asyncio.Event()
        self._steps: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(
            interceptors=(ClusterTokenCheck(token),),
            options=SERVER_OPTIONS,
        )

    async def start(self, unix_path: Path, node_ip: str) -> WorkerAddress:
        """Listens on a unix socket and on the node's address."""
        pb_grpc.add_WorkerServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{unix_path}")
        port = self._server.add_insecure_port(f"{node_ip}:0")
        await self._server.start()
        self._steps = asyncio.create_task(self._deliver_steps())
        return WorkerAddress(str(unix_path), machine_boot_id(), f"{node_ip}:{port}")

    async def drain(self, grace_s: float) -> None:
        """Refuses new sequences, lets the running ones finish, then closes every stream."""
        self._draining = True
        self._state_changed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        for peer in self._peers.values():
            peer.close()
        await self._server.stop(grace=1.0)
        if self._steps is not None:
            self._steps.cancel()

    async def Connect(
        self, requests: AsyncIterator[pb.ConnectRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """One ingress: commands come in, one message per engine step goes out."""
        first = await anext(aiter(requests), None)
        if first is None or not first.HasField("hello") or first.hello.protocol != PROTOCOL:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, f"the first message must be Hello of protocol {PROTOCOL}"
            )
        peer = self._admit_peer(first.hello)
        reading = asyncio.create_task(self._read_commands(requests, peer))
        try:
            await context.write(pb.ConnectResponse(sequence=1, welcome=self._welcome()))
            await self._write_steps(context, peer)
        finally:
            reading.cancel()
            self._drop_peer(peer)

    async def Watch(
        self, request: pb.WatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.WatchResponse]:
        """State now and every heartbeat, sooner when it matters."""
        sequence = 0
        for told in self._feed.watch():
            # Before it is told: a drain may begin while a message is being written.
            self._state_changed.clear()
            for news in told:
                sequence += 1
                state, ready = self._engine.state(), not self._takes_nothing
                yield encode_state(state, sequence, ready, self._draining, self._speed(), news)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._state_changed.wait()

    @property
    def _takes_nothing(self) -> bool:
        """A failed engine's process needs a while to end."""
        return self._draining or self._has_failed

    def _welcome(self) -> pb.Welcome:
        record = self._record
        return pb.Welcome(
            replica_id=record.replica_id,
            incarnation=record.incarnation,
            model=record.model,
            prefix_block_tokens=ROUTING_BLOCK_TOKENS if self._tells_blocks else 0,
            heartbeat_ms=round(HEARTBEAT_S * 1000),
        )

    def _admit_peer(self, hello: pb.Hello) -> Peer:
        """A newer life of an ingress replaces the older one."""
        older = self._peers.get(hello.ingress_id)
        peer = Peer(hello.ingress_id, hello.epoch)
        if older is not None:
            older.close()
        self._peers[hello.ingress_id] = peer
        return peer

    def _drop_peer(self, peer: Peer) -> None:
        """The stream ended: nobody waits for its sequences any more."""
        peer.closed = True
        if self._peers.get(peer.ingress_id) is peer:
            del self._peers[peer.ingress_id]
        for request_id in list(peer.attempts):
            self._engine.cancel(request_id)

    async def _read_commands(self, requests: AsyncIterator[pb.ConnectRequest], peer: Peer) -> None:
        try:
            async for request in requests:
                if request.HasField("ack"):
                    peer.acknowledge(request.ack.sequence)
                for submit in request.submits:
                    self._submit(submit, peer)
                for cancel in request.cancels:
                    if peer.attempts.get(cancel.request_id) == cancel.attempt:
                        self._engine.cancel(cancel.request_id)
        finally:
            peer.close()

    def _submit(self, message: pb.Submit, peer: Peer) -> None:
        request_id = message.request_id
        span = self._tracing and self._tracing.sequence(message.trace, self._record.replica_id, message.attempt)
        try:
            if self._takes_nothing:
                raise Draining
            self._engine.submit(decode_submit(message))
        except Llama31Error as error:
            if span:
                span.refused(error.reason)
            refusal = pb.Refusal(reason=error.reason, message=str(error), retryable=self._takes_nothing)
            peer.push_message(pb.Output(request_id=request_id, attempt=message.attempt, refusal=refusal))
            return
        peer.attempts[request_id] = message.attempt
        peer.emitted[request_id] = len(message.output_token_ids)
        if span:
            self._spans[request_id] = span
        self._owner[request_id] = peer
        self._idle.clear()
        if message.deadline_in_ms:
            loop = asyncio.get_running_loop()
            self._deadlines[request_id] = loop.call_later(
                message.deadline_in_ms / 1000, self._engine.cancel, request_id
            )

    async def _write_steps(self, context: grpc.aio.ServicerContext[Any, Any], peer: Peer) -> None:
        sequence = 1
        while True:
            # First the reader, then the outputs: what becomes ready meanwhile is merged.
            async with asyncio.timeout(PEER_STALL_S):
                await peer.wait_until_read(sequence)
            if not (outputs := await peer.take()):
                return
            price = self._price()
            for batch in split_outputs(outputs):
                sequence += 1
                message = pb.ConnectResponse(
                    sequence=sequence,
                    outputs=batch,
                    price_joules=price.joules,
                    price_accelerator_seconds=price.accelerator_s,
                )
                async with asyncio.timeout(PEER_STALL_S):
                    await context.write(message)

    async def _deliver_steps(self) -> None:
        """The one consumer of the engine."""
        try:
            while True:
                for output in await self._engine.next_step():
                    self._deliver(output)
        except EngineFailed as error:
            self._has_failed = True
            self._state_changed.set()
            for request_id in list(self._owner):
                self._deliver(EngineOutput(request_id, TokenColumns(), error=str(error)))
            self._on_failure(error)

    def _deliver(self, output: EngineOutput) -> None:
        peer = self._owner.get(output.request_id)
        if peer is None:
            return
        if output.is_last:
            del self._owner[output.request_id]
            if (timer := self._deadlines.pop(output.request_id, None)) is not None:
                timer.cancel()
            if (span := self._spans.pop(output.request_id, None)) is not None:
                span.end(output, peer.emitted.get(output.request_id, 0) + len(output.tokens.ids))
            if not self._owner:
                self._idle.set()
        if not peer.closed and output.request_id in peer.attempts:
            peer.push(output)


class ClusterTokenCheck(grpc.aio.ServerInterceptor):
    """Refuses every call that does not show the cluster token."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}"

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Looks at the metadata before the handler sees anything."""
        shown = dict(handler_call_details.invocation_metadata or ()).get(AUTHORIZATION, "")
        handler = await continuation(handler_call_details)
        if isinstance(shown, str) and hmac.compare_digest(shown, self._expected):
            return handler
        return _refusing_twin(handler)


def _refusing_twin(handler: Any) -> Any:
    """A handler of the same kind that only says no."""

    async def refuse(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the cluster token is missing or wrong")

    if handler is None:
        return None
    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse)
    return grpc.unary_stream_rpc_method_handler(refuse)


def machine_boot_id() -> str:
    """The same for all processes of one booted machine, so that they may share unix sockets."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
