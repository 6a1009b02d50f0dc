"""Does a replica serve its peers over real gRPC as the worker protocol says, and nobody else?"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
import pytest
from replica import STEP_S, TOKEN, Replica, endless, engine_request, running_replica

from deployments.worker_codec import decode_output, encode_submit
from deployments.worker_server import AUTHORIZATION, PROTOCOL, Peer
from llama31.chat import FinishReason, TokenColumns
from llama31.engine import EngineOutput, EngineState
from llama31.errors import EngineFailed
from llama31.scripted_engine import Script
from llama31.worker.v1 import worker_service_pb2 as pb
from llama31.worker.v1 import worker_service_pb2_grpc as pb_grpc
from tests.waiting import soon, until

SLOW = Script(answer=endless, step_s=STEP_S)
METADATA = ((AUTHORIZATION, f"Bearer {TOKEN}"),)
LONG = 100_000


class Ingress:
    """One peer, message by message."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = pb_grpc.WorkerServiceStub(channel)
        self.call = self.stub.Connect(metadata=METADATA)
        self.messages: list[pb.ConnectResponse] = []
        self.outputs: list[pb.Output] = []
        self.acknowledges = True

    async def hello(self, ingress_id: str = "ingress-1", epoch: int = 1) -> pb.Welcome:
        hello = pb.Hello(ingress_id=ingress_id, epoch=epoch, protocol=PROTOCOL)
        await self.call.write(pb.ConnectRequest(hello=hello))
        response: pb.ConnectResponse = await soon(self.call.read())
        assert response.sequence == 1
        return response.welcome

    async def submit(
        self, request_id: str, prompt: Sequence[int] = (10, 11, 12), limit: int = 8, attempt: int = 0, deadline: int = 0
    ) -> None:
        message = encode_submit(engine_request(request_id, prompt, limit))
        message.attempt, message.deadline_in_ms = attempt, deadline
        await self.call.write(pb.ConnectRequest(submits=[message]))

    async def cancel(self, request_id: str, attempt: int = 0) -> None:
        await self.call.write(pb.ConnectRequest(cancels=[pb.Cancel(request_id=request_id, attempt=attempt)]))

    async def read(self) -> bool:
        """One message; False at the end of the stream."""
        try:
            message = await soon(self.call.read())
        except grpc.aio.AioRpcError as error:
            # A stream that ends while an acknowledgement is written loses its status (grpc issue 36066).
            if error.code() is not grpc.StatusCode.INTERNAL:
                raise
            return False
        if message is grpc.aio.EOF:
            return False
        self.messages.append(message)
        self.outputs.extend(message.outputs)
        if self.acknowledges:
            with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                await self.call.write(pb.ConnectRequest(ack=pb.Ack(sequence=message.sequence)))
        return True

    async def read_until_last(self, *request_ids: str) -> None:
        """Reads until each of these sequences has ended."""
        while not all(self.terminals(request_id) for request_id in request_ids):
            assert await self.read(), "the stream ended early"

    async def read_to_the_end(self) -> None:
        while await self.read():
            pass

    def terminals(self, request_id: str) -> list[pb.Output]:
        return [o for o in self.outputs if o.request_id == request_id and decode_output(o).is_last]

    def ids(self, request_id: str, emitted: int = 0) -> list[int]:
        """All token ids of a sequence after those, after a check that none is missing or repeated."""
        ids: list[int] = []
        for output in self.outputs:
            if output.request_id == request_id and output.tokens.ids:
                assert output.first_token == emitted + len(ids)
                ids.extend(output.tokens.ids)
        return ids


@asynccontextmanager
async def connected(replica: Replica, ingress_id: str = "ingress-1", epoch: int = 1) -> AsyncIterator[Ingress]:
    async with channel_to(replica) as channel:
        ingress = Ingress(channel)
        await ingress.hello(ingress_id, epoch)
        yield ingress


def channel_to(replica: Replica, over_tcp: bool = False) -> grpc.aio.Channel:
    assert replica.record.address is not None
    target = replica.record.address.target if over_tcp else f"unix:{replica.record.address.unix_path}"
    return grpc.aio.insecure_channel(target, options=(("grpc.use_local_subchannel_pool", 1),))


@pytest.mark.parametrize("over_tcp", [False, True], ids=["unix", "tcp"])
async def test_a_sequence_is_served(over_tcp: bool) -> None:
    async with running_replica() as replica, channel_to(replica, over_tcp) as channel:
        ingress = Ingress(channel)
        welcome = await ingress.hello()
        assert (welcome.replica_id, welcome.incarnation, welcome.heartbeat_ms) == ("replica-1", 1, 500)
        await ingress.submit("a", (7, 8, 9))
        await ingress.read_until_last("a")
        assert ingress.ids("a") == [7, 8, 9]
        assert [m.sequence for m in ingress.messages] == list(range(2, 2 + len(ingress.messages)))


WRONG_METADATA = [
    (),
    ((AUTHORIZATION, "Bearer another"),),
    ((AUTHORIZATION, f"Bearer {TOKEN}x"),),
    ((AUTHORIZATION, TOKEN),),
    ((AUTHORIZATION, ""),),
    (("x-token", f"Bearer {TOKEN}"),),
]


@pytest.mark.parametrize("metadata", WRONG_METADATA, ids=str)
async def test_strangers_are_refused(metadata: tuple[tuple[str, str], ...]) -> None:
    async with running_replica() as replica, channel_to(replica) as channel:
        stub = pb_grpc.WorkerServiceStub(channel)
        for call in (stub.Connect(metadata=metadata), stub.Watch(pb.WatchRequest(), metadata=metadata)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await soon(call.read())
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert TOKEN not in (caught.value.details() or "")
        # Nor does one get through that does not wait for the answer.
        hello = pb.ConnectRequest(hello=pb.Hello(ingress_id="stranger", epoch=1, protocol=PROTOCOL))
        submit = pb.ConnectRequest(submits=[encode_submit(engine_request("a"))])
        with pytest.raises(grpc.aio.AioRpcError):
            await soon(stub.Connect(iter((hello, submit)), metadata=metadata).read())
        assert replica.engine.state() == EngineState(kv_tokens_total=1 << 20)


FIRST_MESSAGES = {
    "submit": pb.ConnectRequest(submits=[pb.Submit(request_id="a")]),
    "cancel": pb.ConnectRequest(cancels=[pb.Cancel(request_id="a")]),
    "nothing": pb.ConnectRequest(),
    "other protocol": pb.ConnectRequest(hello=pb.Hello(ingress_id="i", epoch=1, protocol=PROTOCOL + 1)),
    "no protocol": pb.ConnectRequest(hello=pb.Hello(ingress_id="i", epoch=1)),
}


@pytest.mark.parametrize("first", FIRST_MESSAGES.values(), ids=FIRST_MESSAGES.keys())
async def test_the_first_message_must_be_hello(first: pb.ConnectRequest) -> None:
    async with running_replica() as replica, channel_to(replica) as channel:
        call = pb_grpc.WorkerServiceStub(channel).Connect(metadata=METADATA)
        await call.write(first)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await soon(call.read())
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "Hello" in (caught.value.details() or "")


async def test_a_peer_that_says_nothing_is_refused() -> None:
    async with running_replica() as replica, channel_to(replica) as channel:
        call = pb_grpc.WorkerServiceStub(channel).Connect(metadata=METADATA)
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await soon(call.read())
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_one_message_a_step_carries_all_sequences_of_a_peer() -> None:
    async with running_replica(Script(answer=endless, step_s=0.02)) as replica, connected(replica) as ingress:
        names = [f"r{i}" for i in range(20)]
        for name in names:
            await ingress.submit(name, limit=8)
        await ingress.read_until_last(*names)
        # The first steps may begin before all have arrived; after them they run together.
        assert len(ingress.messages) <= replica.engine.state().steps_total
        assert max(len(message.outputs) for message in ingress.messages) == len(names)
        for name in names:
            assert ingress.ids(name) == [65] * 8
            assert [o.finish_reason for o in ingress.terminals(name)] == [FinishReason.MAX_OUTPUT_TOKENS.value]


async def test_cancel_is_answered_by_exactly_one_terminal_output() -> None:
    async with running_replica(SLOW) as replica, connected(replica) as ingress:
        await ingress.submit("a", limit=LONG)
        await ingress.submit("b", limit=20)
        while not ingress.ids("a"):
            await ingress.read()
        for _ in range(3):
            await ingress.cancel("a")
        await ingress.cancel("unknown")
        await ingress.read_until_last("a", "b")
        assert [o.finish_reason for o in ingress.terminals("a")] == [FinishReason.ABORTED.value]
        assert ingress.outputs[-1].request_id == "b"
        assert ingress.ids("b") == [65] * 20
        assert replica.engine.state().kv_tokens_used == 0


async def test_a_cancel_of_another_attempt_changes_nothing() -> None:
    async with running_replica(SLOW) as replica, connected(replica) as ingress:
        await ingress.submit("a", limit=5, attempt=2)
        await ingress.cancel("a", attempt=1)
        await ingress.read_until_last("a")
        assert ingress.ids("a") == [65] * 5
        assert {output.attempt for output in ingress.outputs} == {2}


@pytest.mark.parametrize("how", ["cancel", "done_writing"])
async def test_a_peer_that_goes_away_frees_its_sequences(how: str) -> None:
    async with running_replica(SLOW) as replica, connected(replica, "other") as other:
        await other.submit("stays", limit=LONG)
        async with connected(replica) as ingress:
            await ingress.submit("a", limit=LONG)
            await ingress.submit("b", limit=LONG)
            await until(lambda: replica.engine.state().running == 3)
            if how == "cancel":
                ingress.call.cancel()
            else:
                await ingress.call.done_writing()
            await until(lambda: replica.engine.state().running == 1)
        before = len(other.ids("stays"))
        while len(other.ids("stays")) <= before:
            await other.read()


async def test_engine_failure_refuses_every_sequence() -> None:
    script = Script(answer=endless, step_s=STEP_S, fail_at_step=3)
    async with (
        running_replica(script) as replica,
        connected(replica, "one") as one,
        connected(replica, "two") as two,
    ):
        await one.submit("a", limit=LONG)
        await one.submit("b", limit=LONG)
        await two.submit("c", limit=LONG)
        await one.read_until_last("a", "b")
        await two.read_until_last("c")
        for refused in (*one.terminals("a"), *one.terminals("b"), *two.terminals("c")):
            assert refused.refusal.reason == EngineFailed.reason
            assert refused.refusal.retryable
            assert refused.refusal.message == "the scripted engine was told to fail"
        assert [type(failure) for failure in replica.failures] == [EngineFailed]


async def test_drain_refuses_new_and_lets_running_finish() -> None:
    async with running_replica(SLOW) as replica, connected(replica) as ingress:
        await ingress.submit("a", limit=10)
        await until(lambda: replica.engine.state().running)
        # The status is looked at, and an acknowledgement on its way would lose it.
        ingress.acknowledges = False
        draining = asyncio.create_task(replica.worker.drain(5.0))
        await asyncio.sleep(0)
        await ingress.submit("late")
        await ingress.read_to_the_end()
        assert await ingress.call.code() is grpc.StatusCode.OK
        assert ingress.ids("a") == [65] * 10
        assert ingress.terminals("a")[0].finish_reason == FinishReason.MAX_OUTPUT_TOKENS.value
        (late,) = ingress.terminals("late")
        assert late.refusal.reason == "DRAINING"
        assert late.refusal.retryable
        await soon(draining)


async def test_drain_gives_up_after_its_grace() -> None:
    async with running_replica(SLOW) as replica, connected(replica) as ingress:
        await ingress.submit("a", limit=LONG)
        await until(lambda: replica.engine.state().running)
        draining = asyncio.create_task(replica.worker.drain(0.02))
        await ingress.read_to_the_end()
        assert not ingress.terminals("a")
        await soon(draining)
        assert replica.engine.state().running == 0


async def test_two_peers_do_not_see_each_others_outputs() -> None:
    async with running_replica() as replica, connected(replica, "one") as one, connected(replica, "two") as two:
        for i in range(10):
            await one.submit(f"one-{i}", (1, i))
            await two.submit(f"two-{i}", (2, i))
        await one.read_until_last(*(f"one-{i}" for i in range(10)))
        await two.read_until_last(*(f"two-{i}" for i in range(10)))
        for name, peer in ((1, one), (2, two)):
            prefix = "one" if name == 1 else "two"
            assert {o.request_id.partition("-")[0] for o in peer.outputs} == {prefix}
            assert all(peer.ids(f"{prefix}-{i}") == [name, i] for i in range(10))


async def test_a_newer_epoch_supersedes_the_older() -> None:
    async with running_replica(SLOW) as replica, connected(replica, "one", epoch=1) as older:
        await older.submit("a", limit=LONG)
        await until(lambda: replica.engine.state().running)
        async with connected(replica, "one", epoch=2) as newer:
            await older.read_to_the_end()
            assert not older.terminals("a")
            await until(lambda: not replica.engine.state().running)
            await newer.submit("b", limit=3)
            await newer.read_until_last("b")
            assert {output.request_id for output in newer.outputs} == {"b"}


async def test_a_duplicate_request_id_is_refused() -> None:
    async with running_replica(SLOW) as replica, connected(replica, "one") as one, connected(replica, "two") as two:
        await one.submit("a", limit=10)
        await until(lambda: replica.engine.state().running)
        await two.submit("a", limit=10)
        await two.read_until_last("a")
        assert two.terminals("a")[0].refusal.reason == "DUPLICATE_REQUEST"
        assert not two.terminals("a")[0].refusal.retryable
        await one.read_until_last("a")
        assert one.ids("a") == [65] * 10


async def test_a_sequence_goes_on_where_another_replica_ended() -> None:
    async with running_replica() as replica, connected(replica) as ingress:
        emitted = engine_request("a", range(40, 50), 8, output_token_ids=(40, 41, 42))
        await ingress.call.write(pb.ConnectRequest(submits=[encode_submit(emitted)]))
        await ingress.read_until_last("a")
        assert ingress.ids("a", emitted=3) == [43, 44, 45, 46, 47], "the limit counts what was emitted"


async def test_the_deadline_aborts() -> None:
    async with running_replica(SLOW) as replica, connected(replica) as ingress:
        await ingress.submit("a", limit=LONG, deadline=30)
        await ingress.submit("b", limit=10, deadline=60_000)
        await ingress.read_until_last("a", "b")
        assert [o.finish_reason for o in ingress.terminals("a")] == [FinishReason.ABORTED.value]
        assert 0 < len(ingress.ids("a")) < LONG
        assert ingress.ids("b") == [65] * 10


async def test_outputs_that_nobody_takes_yet_are_merged() -> None:
    """The connection is paused, the engine goes on: what waits for the peer stays one output a sequence."""
    peer = Peer("one", 1)
    for name in ("a", "b"):
        peer.attempts[name], peer.emitted[name] = 0, 0
    for token in range(100):
        peer.push(EngineOutput("a", TokenColumns((token,))))
    peer.push(EngineOutput("b", TokenColumns((7,)), FinishReason.END_OF_TURN))
    first, second = await soon(peer.take())
    assert (list(first.tokens.ids), first.first_token) == (list(range(100)), 0)
    assert (list(second.tokens.ids), second.finish_reason) == ([7], FinishReason.END_OF_TURN.value)
    peer.push(EngineOutput("a", TokenColumns((100,))))
    assert [output.first_token for output in await peer.take()] == [100]
    assert list(peer.attempts) == ["a"]
    peer.close()
    assert await soon(peer.take()) == []


async def test_watch_tells_the_state_at_once_and_when_draining_begins() -> None:
    async with running_replica(SLOW) as replica, connected(replica) as ingress:
        await ingress.submit("a", (1, 2, 3), limit=20)
        await until(lambda: replica.engine.state().running)
        watch = ingress.stub.Watch(pb.WatchRequest(ingress_id="ingress-1"), metadata=METADATA)
        first = await soon(watch.read())
        assert (first.sequence, first.running, first.ready, first.draining) == (1, 1, True, False)
        assert first.kv_tokens_used > 3
        draining = asyncio.create_task(replica.worker.drain(5.0))
        second = await soon(watch.read(), limit_s=0.4)
        assert (second.sequence, second.ready, second.draining) == (2, False, True)
        watch.cancel()
        await ingress.read_to_the_end()
        await soon(draining)


async def test_heartbeats_come_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.worker_server.HEARTBEAT_S", 0.01)
    async with running_replica() as replica, channel_to(replica) as channel:
        watch = pb_grpc.WorkerServiceStub(channel).Watch(pb.WatchRequest(), metadata=METADATA)
        assert [(await soon(watch.read())).sequence for _ in range(5)] == [1, 2, 3, 4, 5]
        watch.cancel()


async def test_an_ingress_that_does_not_acknowledge_gets_merged_outputs_later() -> None:
    async with running_replica(Script(answer=endless, step_s=0.0)) as replica, connected(replica) as ingress:
        await ingress.submit("a", limit=200)
        message: pb.ConnectResponse = await soon(ingress.call.read())
        ingress.outputs.extend(message.outputs)
        await until(lambda: replica.engine.state().running == 0 and replica.engine.state().steps_total >= 200)
        await ingress.call.write(pb.ConnectRequest(ack=pb.Ack(sequence=message.sequence)))
        await ingress.read_until_last("a")
        assert len(ingress.ids("a")) == 200
        assert len(ingress.outputs) <= 3, "what came meanwhile was one output"
