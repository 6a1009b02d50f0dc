"""Do the ingress processes of a node leave when somebody there asks them to, and what is said of those that do not?"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from scripted_gateway import ScriptedGateway
from test_shared_port import OWN_CONNECTION, STREAM_CHAT, held_until, request

from deployments.cli import main
from deployments.config import node_dir
from deployments.drain import DrainDoor, drain_node, ready_count
from deployments.ingress.grpc import GrpcIngress, IngressSettings
from llama31.v1 import chat_service_pb2 as chat_pb
from tests.waiting import soon, until

Health = health_pb2.HealthCheckResponse
WATCH = "/grpc.health.v1.Health/Watch"

# Another process of the node: it drains without a stream, or not before it is killed.
PROCESS = """
import asyncio, sys
from pathlib import Path
from deployments.drain import DrainDoor

async def drain(grace_s):
    if sys.argv[2] == "dies":
        print("asked", flush=True)
        await asyncio.Event().wait()
    return True

async def run():
    await DrainDoor(Path(sys.argv[1]), drain, lambda: sys.argv[2] != "starts").start()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(run())
"""


@asynccontextmanager
async def other_ingress(directory: Path, how: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROCESS, str(directory), how, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    yield process
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()


@asynccontextmanager
async def ingress_with_a_stream(
    directory: Path, finish: asyncio.Event
) -> AsyncIterator[tuple[GrpcIngress, grpc.aio.Channel, AsyncIterator[bytes]]]:
    """This process's, with a door as the real one has, and a client in the middle of an answer."""
    gateway = ScriptedGateway()
    gateway.script = held_until(finish)
    ingress = GrpcIngress(gateway, IngressSettings(port=0, so_reuseport=True))
    port = await ingress.start()
    door = DrainDoor(directory, ingress.drain, lambda: not ingress.is_draining)
    await door.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OWN_CONNECTION) as channel:
        stream = aiter(channel.unary_stream(STREAM_CHAT)(request()))
        await soon(anext(stream))
        yield ingress, channel, stream
    await door.close()
    await ingress.stop()


async def test_a_drain_waits_for_the_last_stream_of_every_process(tmp_path: Path) -> None:
    finish = asyncio.Event()
    async with ingress_with_a_stream(tmp_path, finish) as (ingress, _, stream), other_ingress(tmp_path, "ends"):
        asked = asyncio.create_task(asyncio.to_thread(drain_node, tmp_path, 30.0))
        await until(lambda: ingress.is_draining)
        assert not asked.done()
        finish.set()
        events = [chat_pb.StreamChatResponse.FromString(message) async for message in stream]
        assert events[-1].event.HasField("completed"), "the stream ended whole"
        assert await soon(asked) == "2 of 2 ingress processes have drained"
    assert not list(tmp_path.glob(f"ingress-{os.getpid()}.sock"))


async def test_health_says_that_it_leaves_and_what_does_not_end_is_cut_off(tmp_path: Path) -> None:
    async with ingress_with_a_stream(tmp_path, asyncio.Event()) as (ingress, channel, _):
        watch = aiter(channel.unary_stream(WATCH)(b""))
        assert Health.FromString(await soon(anext(watch))).status == Health.SERVING
        asked = asyncio.create_task(asyncio.to_thread(drain_node, tmp_path, 0.5))
        assert Health.FromString(await soon(anext(watch))).status == Health.NOT_SERVING
        assert ingress.is_draining
        assert await soon(asked) == "0 of 1 ingress processes have drained; what still ran in the others was cut off"


async def test_a_process_that_dies_meanwhile_is_not_waited_for(tmp_path: Path) -> None:
    async with other_ingress(tmp_path, "dies") as process:
        asked = asyncio.create_task(asyncio.to_thread(drain_node, tmp_path, 600.0))
        assert process.stdout is not None
        await soon(process.stdout.readline())
        process.kill()
        assert (await soon(asked)).startswith("0 of 1 ")
    assert "none listens" in await asyncio.to_thread(drain_node, tmp_path, 1.0), "what it left is no process"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the processes of a declared service meet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    node_dir().mkdir()
    return node_dir()


async def test_the_command_in_a_pod(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with other_ingress(node, "ends"):
        assert await asyncio.to_thread(main, ["drain", "--wait", "5"]) == 0
    assert capsys.readouterr().out == "1 of 1 ingress processes have drained\n"


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        (("ends",), 0, "1 of 1 ingress processes are ready\n"),
        (("ends", "starts"), 1, "1 of 2 ingress processes are ready\n"),
        ((), 1, "0 of 0 ingress processes are ready\n"),
    ],
)
async def test_a_probe_in_a_pod(
    how: tuple[str, ...], code: int, words: str, node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with AsyncExitStack() as processes:
        for one in how:
            await processes.enter_async_context(other_ingress(node, one))
        assert await asyncio.to_thread(main, ["ready"]) == code
    assert capsys.readouterr().out == words


async def test_a_process_that_leaves_is_not_ready(tmp_path: Path) -> None:
    async with ingress_with_a_stream(tmp_path, asyncio.Event()) as (ingress, _, _):
        assert await asyncio.to_thread(ready_count, tmp_path) == (1, 1)
        asked = asyncio.create_task(asyncio.to_thread(drain_node, tmp_path, 0.5))
        await until(lambda: ingress.is_draining)
        assert await asyncio.to_thread(ready_count, tmp_path) == (0, 1)
        await soon(asked)


def test_the_command_where_there_is_none(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (node / "ingress-1.sock").touch()
    assert main(["drain"]) == 0
    assert capsys.readouterr().out.startswith("no ingress process of a declared service runs on this node")


@pytest.mark.parametrize("seconds", ["", "-1", "nan", "1e9", "soon"])
def test_a_wrong_time_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["drain", f"--wait={seconds}"])
    assert "is not a number of seconds" in capsys.readouterr().err
