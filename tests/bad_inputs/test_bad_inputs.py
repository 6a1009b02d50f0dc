"""Does each case of the catalogue get its answer on each channel, from a server that stays up and clean?"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from tests.bad_inputs import play_grpc, play_http, situations
from tests.bad_inputs.cases import Case, UnknownKey, load_cases
from tests.bad_inputs.checks import CHECKS, Evidence
from tests.bad_inputs.deviations import NOT_APPLICABLE, expectation
from tests.bad_inputs.grpc_calls import injected
from tests.bad_inputs.server import Server, Servers
from tests.bad_inputs.verdict import Seen, faults

pytestmark = [pytest.mark.bad_input, pytest.mark.asyncio(loop_scope="session")]

STREAM_TWINS = {"Chat": "StreamChat", "Complete": "StreamComplete"}
CASE_LIMIT_S = 30.0
CASES = load_cases()


def grpc_tests() -> list[tuple[Case, str]]:
    """Each gRPC case with each method that it is meant for."""
    found = []
    for case in CASES:
        if case.expect_grpc is not None:
            method = str(case.request.get("method", ""))
            found += [(case, m) for m in (method, STREAM_TWINS.get(method)) if m is not None]
    return found


@pytest.mark.parametrize(("case", "method"), grpc_tests(), ids=lambda v: getattr(v, "id", v))
async def test_bad_input_over_grpc(case: Case, method: str, servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    """With a real gRPC client, or frame by frame where no client would do it."""
    assert case.expect_grpc is not None
    expected = expectation(case.id, "grpc", case.expect_grpc)
    await judge(case, expected, servers, caplog, lambda server: play_grpc.play(case, method, server))


@pytest.mark.parametrize("case", [case for case in CASES if case.expect_http is not None], ids=lambda case: case.id)
async def test_bad_input_over_http(case: Case, servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    """With HTTP/1.1 over a plain socket; a gRPC case is sent as OpenAI's clients would."""
    assert case.expect_http is not None
    expected = expectation(case.id, "http", case.expect_http)
    if expected["status"] == NOT_APPLICABLE:
        pytest.skip("not applicable: docs/bad_inputs.md says why")
    await judge(case, expected, servers, caplog, lambda server: play_http.play(case, server))


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """A case that the runner does not understand fails in its own words."""
    try:
        yield
    except UnknownKey as error:
        pytest.fail(str(error), pytrace=False)


async def judge(
    case: Case,
    expected: dict[str, Any],
    servers: Servers,
    caplog: pytest.LogCaptureFixture,
    play: Callable[[Server], Awaitable[list[Seen]]],
) -> None:
    """Plays the case, compares, and leaves a clean server behind."""
    with understood():
        server = await servers.get(situations.needs_of(case))
        situations.prepare(case, server)
        lag = asyncio.create_task(loop_lag_s())
        try:
            with injected(case, server), caplog.at_level(logging.INFO):
                seen = await asyncio.wait_for(play(server), CASE_LIMIT_S)
            await stop(lag)
            evidence = Evidence(server, tuple(seen), tuple(caplog.records), await lag)
            if found := problems(expected, evidence):
                pytest.fail("\n".join((f"{case.id}: {case.why}", *found)), pytrace=False)
            await server.check_clean()
        finally:
            await stop(lag)
            await servers.release(server)


def problems(expected: dict[str, object], evidence: Evidence) -> list[str]:
    """Of several answers at least one is the expected one, and the others are good."""
    seen = evidence.seen
    by_answer = [faults(one, expected) for one in seen]
    found = min(by_answer, key=len)
    found += (
        [
            f"another call ended with {s.statuses}: {s.detail[:100]}"
            for s, f in zip(seen, by_answer, strict=True)
            if f and not {"OK", 200} & set(s.statuses)
        ][:3]
        if not found
        else []
    )
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
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(0.01)
            worst_s, last_s = max(worst_s, time.monotonic() - last_s - 0.01), time.monotonic()
    return worst_s


async def stop(task: asyncio.Task[float]) -> None:
    """Cancels it once it has begun, so that it can say what it saw."""
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
