"""Is it said that locked memory is limited, where RDMA was asked for and only there?"""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator

import pytest

from llama31.vllm_rdma import warn_of_locked_memory

UNLIMITED = resource.RLIM_INFINITY


@pytest.fixture
def limit_kib() -> Iterator[int]:
    """This process's own limit, lowered for the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 * 1024, hard))
    yield 64
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))


def words(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, disabled: str | None) -> list[str]:
    """What is said where NCCL_IB_DISABLE is so."""
    if disabled is None:
        monkeypatch.delenv("NCCL_IB_DISABLE", raising=False)
    else:
        monkeypatch.setenv("NCCL_IB_DISABLE", disabled)
    with caplog.at_level(logging.WARNING):
        warn_of_locked_memory()
    return caplog.messages


@pytest.mark.parametrize(("disabled", "is_said"), [("0", True), ("1", False), (None, False)])
def test_a_limit_is_said_where_rdma_is_asked_for(
    disabled: str | None,
    is_said: bool,
    limit_kib: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = words(monkeypatch, caplog, disabled)
    assert bool(said) == is_said
    assert all(f"only {limit_kib} KiB" in text and "LimitMEMLOCK=infinity" in text for text in said)


def test_without_a_limit_nothing_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (UNLIMITED, UNLIMITED))
    assert not words(monkeypatch, caplog, "0")
