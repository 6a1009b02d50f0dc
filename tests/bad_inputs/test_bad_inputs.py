"""Does each case of the catalogue get its answer on each channel, from a server that stays up and clean?"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import warnings
from pathlib import Path

import pytest
from replica import until

from tests.bad_inputs import raw_connections, situations
from tests.bad_inputs.cases import Case, load_cases
from tests.bad_inputs.checks import CHECKS, Evidence
from tests.bad_inputs.deviations import expectation
from tests.bad_inputs.grpc_calls import STREAMS, Sender, hear, injected
from tests.bad_inputs.pending import missing_part
from tests.bad_inputs.server import Server, Servers
from tests.bad_inputs.verdict import Seen, faults

pytestmark = pytest.mark.asyncio(loop_scope="session")

ROOT = Path(__file__).resolve().parents[2]
STREAM_TWINS = {"Chat": "StreamChat", "Complete": "StreamComplete"}
CASE_LIMIT_S = 30.0


def grpc_tests() -> list[tuple[Case, str]]:
    """Each gRPC case with each method that it is meant for."""
    found = []
    for case in load_cases():
        if case.expect_grpc is None:
            continue
        method = str(case.request.get("method", ""))
        found += [(case, m) for m in (method, STREAM_TWINS.get(method)) if m is not None]
    return found


@pytest.mark.parametrize(("case", "method"), grpc_tests(), ids=lambda v: getattr(v, "id", v))
async def test_bad_input_over_grpc(
    case: Case, method: str, servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    """The status, what else the case asks for, and a clean server."""
    assert case.expect_grpc is not None
    case.check_keys()
    expected = expectation(case.id, "grpc", case.expect_grpc)
    server = await servers.get(situations.needs_of(case))
    situations.prepare(case, server)
    lag = asyncio.create_task(loop_lag_s())
    try:
        async with asyncio.timeout(CASE_LIMIT_S):
            with injected(case, server), caplog.at_level(logging.INFO):
                seen = await play(case, method, server)
        await asyncio.sleep(0)
        lag.cancel()
        evidence = Evidence(server, tuple(seen), tuple(caplog.records), await lag)
        if part := missing_part(seen[0], str(expected.get("reason", ""))):
            pytest.skip(f"needs {part}")
        if found := problems(expected, evidence):
            pytest.fail("\n".join((f"{case.id}: {case.why}", *found)), pytrace=False)
        await server.check_clean()
    finally:
        lag.cancel()
        await servers.release(server)


async def play(case: Case, method: str, server: Server) -> list[Seen]:
    """Sends what the case says, in the situation that it says."""
    request = case.request
    if "raw_tcp_hex" in request:
        return [await raw_connections.speak_tcp(case, server, server.port)]
    if "h2" in request:
        return [await raw_connections.speak_http2(case, server)]
    sender = Sender(case, method, server)
    if request.get("client") == "never reads":
        return [await raw_connections.never_read(sender, request.get("h2_initial_window", 1024))]
    if str(request.get("client", "")).startswith("SIGKILL"):
        return [await killed_client(sender)]
    if "tls" in request:
        return [await other_tls(sender)]
    if "cancel_after_chunks" in request:
        return [await sender.cancelled_after(request["cancel_after_chunks"])]
    if "repeat" in request or "concurrent" in request:
        return await sender.many(request.get("repeat") or request["concurrent"])
    if (chunks := situations.chunks_until_kill(case)) is not None:
        return [await killed_engine(sender, chunks)]
    if "drain" in request.get("during", ""):
        await server.ingress.drain(0)
    return [await sender.once()]


async def killed_engine(sender: Sender, chunks: int) -> Seen:
    """The replica that answers goes away in the middle."""
    async with sender.server.channel() as channel:
        call = sender.open(channel)
        reading = asyncio.create_task(hear(call, sender.method))
        (busy,) = [await busy_replica(sender.server, chunks)]
        await busy.kill()
        return await reading


async def busy_replica(server: Server, tokens: int):  # type: ignore[no-untyped-def]
    """The replica that has put out so many tokens."""
    busy = lambda: [r for r in server.replicas if r.engine.state().output_tokens_total >= tokens]  # noqa: E731
    await until(busy)
    return busy()[0]


async def killed_client(sender: Sender) -> Seen:
    """A client process is killed in the middle; what is left to see is the server's side."""
    server = sender.server
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bad_inputs.killed_client"),
        *(f"127.0.0.1:{server.port}", sender.path, dict(server.credentials)["authorization"]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(sender.message)
    process.stdin.close()
    await asyncio.wait_for(process.stdout.readline(), 10)
    if sender.method in STREAMS:
        await asyncio.wait_for(process.stdout.readline(), 5)
    await until(server.running)
    process.kill()
    await process.wait()
    killed_s = time.monotonic()
    await until(lambda: not server.running(), 1.0)
    return Seen(("CANCELLED",), f"the engine was free after {time.monotonic() - killed_s:.2f} s")


async def other_tls(sender: Sender) -> Seen:
    """A client without TLS, or with a certificate of somebody else."""
    import grpc

    server, kind = sender.server, sender.case.request["tls"]
    assert server.certificates is not None
    address = f"127.0.0.1:{server.port}"
    if kind == "plaintext-to-tls-port":
        channel = grpc.aio.insecure_channel(address)
    elif kind == "client-cert-from-other-CA":
        channel = grpc.aio.secure_channel(address, server.certificates.client_credentials(is_foreign=True))
    else:
        pytest.fail(f"{sender.case.id}: the runner does not know the TLS client {kind!r}")
    async with channel:
        return await hear(sender.open(channel), sender.method)


def problems(expected: dict[str, object], evidence: Evidence) -> list[str]:
    """Of several answers at least one is the expected one, and the others are good."""
    seen = evidence.seen
    by_answer = [faults(one, expected) for one in seen]
    found = min(by_answer, key=len)
    found += [f"another call ended with {s.statuses}: {s.detail[:100]}" for s, f in zip(seen, by_answer, strict=True)
              if f and "OK" not in s.statuses][:3] if not found else []
    for name in ("check", "server_check"):
        text = expected.get(name)
        if text in CHECKS:
            found += [fault for fault in (CHECKS[str(text)](evidence),) if fault]
        elif text:
            warnings.warn(f"the runner cannot check {text!r}", stacklevel=2)
    return found


async def loop_lag_s() -> float:
    """The longest time that the event loop did nothing else, measured until cancelled."""
    worst_s, last_s = 0.0, time.monotonic()
    try:
        while True:
            await asyncio.sleep(0.01)
            worst_s, last_s = max(worst_s, time.monotonic() - last_s - 0.01), time.monotonic()
    except asyncio.CancelledError:
        return worst_s

