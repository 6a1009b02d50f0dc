"""What do the conformance tests share? The served doors, and what each client's script saw of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conformance.environments import NotToBeHad, node_command, own_command, triton_command
from tests.documents import ROOT

CLIENT_LIMIT_S = 60

Addresses = dict[str, str]
Outcomes = dict[str, Any]


def environment() -> dict[str, str]:
    """For a client: no proxy between it and the loopback, and only its own packages."""
    kept = {n: value for n, value in os.environ.items() if not n.lower().endswith("_proxy") and n != "PYTHONPATH"}
    return kept | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


@pytest.fixture(scope="session")
def served() -> Iterator[Addresses]:
    """gRPC and HTTP addresses, and the model's name."""
    command = [sys.executable, "-m", "tests.conformance.served"]
    path = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "unit")))}
    with subprocess.Popen(command, cwd=ROOT, env=environment() | path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()


def outcomes(command: Callable[[str], list[str]], script: str, served: Addresses) -> Outcomes:
    """Case -> what the client's script saw, by running it once for all cases."""
    try:
        arguments = command(script)
    except NotToBeHad as cause:
        pytest.skip(f"the client cannot be had: {cause}")
    run = subprocess.run(
        [*arguments, json.dumps({**served, "protos": str(ROOT / "protos")})],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=CLIENT_LIMIT_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found: Outcomes = json.loads(run.stdout)
    return found


@pytest.fixture(scope="session")
def triton(served: Addresses) -> Outcomes:
    return outcomes(triton_command, "triton.py", served)


@pytest.fixture(scope="session")
def grpc_js(served: Addresses) -> Outcomes:
    return outcomes(node_command, "grpc_js.cjs", served)


@pytest.fixture(scope="session")
def openai_js(served: Addresses) -> Outcomes:
    return outcomes(node_command, "openai_js.cjs", served)


@pytest.fixture(scope="session")
def openai_python(served: Addresses) -> Outcomes:
    return outcomes(own_command, "openai_python.py", served)
