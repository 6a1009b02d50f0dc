"""Which replicas compute the same function?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployments.config import ServiceConfig, load_config
from deployments.engine_digest import engine_digest


def config(directory: Path, **overrides: object) -> ServiceConfig:
    return load_config("standin", {"engine.checkpoint": str(directory), **overrides})


def checkpoint(directory: Path, weights: bytes, theta: float = 1e4) -> Path:
    """A plain download, which nobody finished with a manifest."""
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(weights)
    (directory / "config.json").write_text(json.dumps({"rope_theta": theta}))
    return directory


def test_equal_weights_are_equal_wherever_they_lie_and_however_they_are_split(tmp_path: Path) -> None:
    here, there = (checkpoint(tmp_path / name, b"a" * 1000) for name in ("here", "there"))
    assert engine_digest(config(here)) == engine_digest(config(there, plan="tp2pp2"))


@pytest.mark.parametrize(
    ("weights", "theta", "overrides"),
    [
        (b"a" * 999 + b"b", 1e4, {}),
        (b"b" + b"a" * 999, 1e4, {}),
        (b"a" * 1001, 1e4, {}),
        (b"a" * 1000, 5e5, {}),
        (b"a" * 1000, 1e4, {"engine.dtype": "bfloat16"}),
        (b"a" * 1000, 1e4, {"engine.kv_cache_dtype": "fp8"}),
    ],
    ids=["last byte", "first byte", "size", "config.json", "dtype", "KV dtype"],
)
def test_another_function_is_another_digest(
    tmp_path: Path, weights: bytes, theta: float, overrides: dict[str, object]
) -> None:
    first = engine_digest(config(checkpoint(tmp_path / "first", b"a" * 1000)))
    assert engine_digest(config(checkpoint(tmp_path / "second", weights, theta), **overrides)) != first
