"""Does the chart's Redis start as the chart says, ask for its password, hide it, and keep what it was told?"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.k8s.api_server import running_cluster
from tests.k8s.chart import CHART, NAMESPACE, RELEASE, container, find, preset, render
from tests.k8s.helm import Client
from tests.programs import find_program

pytestmark = pytest.mark.k8s

PASSWORD = "only-for-this-test"


def test_redis_keeps_what_it_is_told(tmp_path: Path) -> None:
    find_program("redis-server")
    with _redis(tmp_path) as (port, process):
        assert _ask(port, "PING")[0].startswith("-NOAUTH")
        assert _ask(port, f"AUTH {PASSWORD}", "SET key value") == ["+OK", "+OK"]
        assert PASSWORD.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    assert process.returncode == 0, "SIGTERM ends it in order"
    with _redis(tmp_path) as (port, _):
        assert _ask(port, f"AUTH {PASSWORD}", "GET key") == ["+OK", "$5"]


@pytest.mark.parametrize("program", ["helm", "helm3"])
def test_a_volume_that_no_upgrade_can_change_is_named(program: str, tmp_path: Path) -> None:
    with running_cluster() as cluster:
        client = Client(program, tmp_path, cluster.kubeconfig)
        chart = (RELEASE, str(CHART), *preset("cpu"), "--set", "gcs.store=redis", "--namespace", NAMESPACE)
        client.must("install", *chart, "--create-namespace")
        for change, words in (
            ("gcs.storage=2Gi", 'gcs.storage is "2Gi", but the volume of llama-redis was made with "1Gi"'),
            ("gcs.storageClass=fast", 'gcs.storageClass is "fast", but the volume of llama-redis was made with ""'),
        ):
            refused = client.run("upgrade", *chart, "--set", change)
            assert refused.code != 0
            assert words in refused.words
        # The API server writes amounts its own way.
        for same in ("gcs.storage=1024Mi", "gcs.store=none,gcs.storage=2Gi"):
            client.must("upgrade", *chart, "--set", same, "--dry-run=server")


@contextmanager
def _redis(directory: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The command of the chart's pod, with a directory and port of this machine."""
    stateful_set = find(render(*preset("8b")), "StatefulSet", f"{RELEASE}-redis")
    *shell, script = container(stateful_set["spec"])["command"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = script.replace("/data", str(directory)).replace(
        "redis-server", f"redis-server --bind 127.0.0.1 --port {port}"
    )
    process = subprocess.Popen(
        [*shell, script], env=os.environ | {"REDIS_PASSWORD": PASSWORD}, stdout=subprocess.DEVNULL
    )
    try:
        _wait_until_it_listens(port)
        yield port, process
    finally:
        process.terminate()
        process.wait(10)


def _wait_until_it_listens(port: int) -> None:
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("Redis does not listen")


def _ask(port: int, *commands: str) -> list[str]:
    """The first line of each answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        answers = connection.makefile("r")
        lines = []
        for command in commands:
            connection.sendall(f"{command}\r\n".encode())
            lines.append(answers.readline().rstrip())
        return lines
