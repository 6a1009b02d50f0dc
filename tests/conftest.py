"""What all tests share: one Ray cluster a session, prepared weights, and the time that each marker took."""

from __future__ import annotations

import gc
import os
import tempfile
from collections import defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from cluster.local import LocalCluster, LocalClusterSettings, prepare_environment

# Before any test module imports Ray.
prepare_environment()

MARKERS = ("demo", "cli", "vllm", "ray", "gpu", "bad_input", "conformance", "k8s", "observe")
BUDGET_S = {
    "unit": 30,
    "bad_input": 120,
    "conformance": 240,
    "k8s": 240,
    "observe": 240,
    "ray": 180,
    "vllm": 900,
    "cli": 450,
    "demo": 180,
    "gpu": 600,
}

_spent_s: dict[str, float] = defaultdict(float)
_tests: dict[str, int] = defaultdict(int)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays, and tests leave little: the garbage collector need not look at all of it so often."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000)
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast ones first, then those that share the session's cluster, then those that start their own."""
    names = ("unit", "bad_input", "conformance", "k8s", "gpu", "ray", "vllm", "observe", "cli", "demo")
    order = {name: place for place, name in enumerate(names)}
    items.sort(key=lambda item: order[_marker(item)])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Adds set-up, call and tear-down to the test's marker."""
    marker = next((name for name in MARKERS if name in report.keywords), "unit")
    _spent_s[marker] += report.duration
    _tests[marker] += report.when == "call"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the time spent per marker beside its budget."""
    terminalreporter.section("time per marker")
    for marker in sorted(_spent_s):
        spent = f"{_tests[marker]:5d} tests {_spent_s[marker]:7.1f} s of {BUDGET_S[marker]} s"
        terminalreporter.line(f"{marker:11s} {spent}")


def _marker(item: pytest.Item) -> str:
    return next((name for name in MARKERS if item.get_closest_marker(name)), "unit")


_shared: list[LocalCluster] = []


@pytest.fixture(scope="module")
def no_shared_cluster() -> None:
    """For modules whose tests start clusters of their own, before any of these starts; they run after the others."""
    for cluster in _shared:
        cluster.stop()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[LocalCluster]:
    """Two nodes of two logical GPUs, joined by this process; ends before tests that start their own."""
    with tempfile.TemporaryDirectory(prefix="llama31-test-") as run_dir:
        os.environ["XDG_RUNTIME_DIR"] = run_dir
        settings = LocalClusterSettings(nodes=2, gpus_per_node=2, cpus_per_node=8, dashboard=False)
        cluster = LocalCluster(settings, lambda line: None)
        cluster.start()
        _shared.append(cluster)
        yield cluster
        cluster.stop()


@pytest.fixture(scope="session")
def standin_checkpoint() -> Path:
    """The prepared stand-in, made in the user's cache if it is not there yet."""
    from deployments.weights import prepare_standin_weights

    return prepare_standin_weights(lambda line: None)
