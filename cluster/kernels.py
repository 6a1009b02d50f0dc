"""How long does one kernel take on one GPU? Measured tables, and what lies between their points."""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cluster.hardware import ISLAND_GPUS, Gpu, get_gpu
from llama31.errors import ConfigInvalid

FORM = 1
TABLES = ("gemm", "attention_context", "attention_generation", "all_reduce", "send")
HEAD_DIM = 128
US = 1e-6
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Grid:
    """Times over batch and tokens, in seconds."""

    batch: Floats
    tokens: Floats
    seconds: Floats

    def at(self, batch: ArrayLike, tokens: ArrayLike) -> Floats:
        """Log-log between the points. Beyond them time grows with the batch and the tokens, below them it stays."""
        b, t = np.broadcast_arrays(np.asarray(batch, float), np.asarray(tokens, float))
        beyond = np.maximum(b / self.batch[-1], 1.0)
        row, row_part = _place(self.batch, b)
        column, column_part = _place(self.tokens, t)
        logs = np.log(self.seconds)
        row_part = np.minimum(row_part, 1.0)
        low = logs[row, column] * (1 - column_part) + logs[row, column + 1] * column_part
        high = logs[row + 1, column] * (1 - column_part) + logs[row + 1, column + 1] * column_part
        return np.asarray(np.exp(low * (1 - row_part) + high * row_part) * beyond)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The tables of one GPU and one engine family. `tables` is as in the file."""

    gpu: Gpu
    source: str
    tables: Mapping[str, Any]

    def gemm_s(self, dtype: str, tokens: ArrayLike, n: int, k: int) -> Floats:
        """`out(tokens, n) = x(tokens, k) W(k, n)`.

        The ratio of measured time to roofline is interpolated, in log n, log k and log tokens; beyond the table it
        stays that of the nearest point. A dtype without a table has the ratio of bfloat16 to its own roofline.
        """
        m = np.maximum(np.asarray(tokens, float), 1.0)
        measured = dtype if dtype in self.tables["gemm"] else "bfloat16"
        table = self.tables["gemm"][measured]
        axis = np.asarray(table["tokens"], float)
        shapes = {_shape(name): times for name, times in table["shapes"].items()}
        ratio = np.zeros_like(m)
        for (corner_n, corner_k), weight in _weights(bracket(shapes, n, k), n, k).items():
            seconds = np.asarray(shapes[corner_n, corner_k]) * US
            ratios = np.log(seconds / self.roofline_s(measured, axis, corner_n, corner_k))
            ratio += weight * np.interp(np.log(m), np.log(axis), ratios)
        return np.asarray(np.exp(ratio) * self.roofline_s(dtype, m, n, k))

    def roofline_s(self, dtype: str, tokens: ArrayLike, n: int, k: int) -> Floats:
        """`max(bytes/HBM, 2*m*n*k/FLOPS)`."""
        m, size = np.asarray(tokens, float), 1 if dtype == "fp8" else 2
        moved = size * (n * k + m * k) + 2 * m * n
        return np.asarray(np.maximum(moved / self.gpu.hbm_bytes_s, 2 * m * n * k / self.gpu.flops(dtype)))

    def decode_attention(self, kv_dtype: str, heads: int, kv_heads: int) -> Grid:
        """One layer's decode attention over (sequences, context tokens)."""
        return self._attention("attention_generation", kv_dtype, heads, kv_heads, power=1)

    def prefill_attention(self, kv_dtype: str, heads: int, kv_heads: int) -> Grid:
        """One layer's prefill attention over (prompts, tokens of each), without a past."""
        return self._attention("attention_context", kv_dtype, heads, kv_heads, power=2)

    def all_reduce_s(self, gpus: int, size_bytes: ArrayLike, island_gpus: int = ISLAND_GPUS) -> Floats:
        """Within a node as measured; over nodes also the exchange of each rank's part, to and fro."""
        size = np.asarray(size_bytes, float)
        if gpus == 1:
            return np.zeros_like(size)
        local = min(gpus, island_gpus)
        table = self.tables["all_reduce"]
        measured = min(map(int, table), key=lambda n: (n < local, abs(n - local)))
        seconds = _curve(table[str(measured)], size) if local > 1 else np.zeros_like(size)
        nodes = -(-gpus // island_gpus)
        if nodes > 1:
            seconds = seconds + 2 * (nodes - 1) * self.send_s("network", size / local / nodes)
        return np.asarray(seconds)

    def send_s(self, scope: str, size_bytes: ArrayLike) -> Floats:
        """Point to point; scope is "nvlink" or "network"."""
        return _curve(self.tables["send"][scope], np.asarray(size_bytes, float))

    def _attention(self, kernel: str, kv_dtype: str, heads: int, kv_heads: int, power: int) -> Grid:
        by_dtype = self.tables[kernel]
        table = by_dtype.get(kv_dtype, by_dtype["bfloat16"])
        name = min(table["heads"], key=lambda name: _head_distance(name, heads, kv_heads))
        tokens = np.asarray(table["tokens"], float)
        seconds = np.asarray([[np.nan if us is None else us * US for us in row] for row in table["heads"][name]])
        for row in seconds:
            last = int(np.flatnonzero(~np.isnan(row))[-1])
            row[last + 1 :] = row[last] * (tokens[last + 1 :] / tokens[last]) ** power
        measured_heads = int(name.partition("x")[0])
        return Grid(np.asarray(table["batch"], float), tokens, seconds * max(1.0, heads / measured_heads))


def bracket(shapes: Collection[tuple[int, int]], n: int, k: int) -> list[tuple[int, int]]:
    """The measured shape itself, or the corners around it, or the nearest one where corners are missing."""
    if (n, k) in shapes:
        return [(n, k)]
    corners = {(a, b) for a in _around([s[0] for s in shapes], n) for b in _around([s[1] for s in shapes], k)}
    if corners <= set(shapes):
        return sorted(corners)
    return [min(shapes, key=lambda shape: (abs(np.log(shape[0] / n)) + abs(np.log(shape[1] / k)), shape))]


def write_kernels(path: Path, gpu: str, source: str, tables: Mapping[str, Any]) -> None:
    """A file that `read_kernels` reads; the same tables give the same bytes."""
    content = json.dumps(
        {"form": FORM, "gpu": gpu, "source": source, "unit": "us", **_rounded(dict(tables))}, separators=(",", ":")
    )
    path.write_bytes(gzip.compress(content.encode(), 9, mtime=0))


def read_kernels(path: Path, base: Kernels | None = None) -> Kernels:
    """The tables of a file; what it lacks (kernels, dtypes, numbers of GPUs) is `base`'s. Raises: ConfigInvalid."""
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, ValueError, EOFError) as error:
        raise ConfigInvalid(f"kernels file {path} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("form") != FORM:
        raise ConfigInvalid(f"kernels file {path} is not of form {FORM}")
    tables = {name: {**(base.tables[name] if base else {}), **content.get(name, {})} for name in TABLES}
    missing = [name for name in ("gpu", "source", *TABLES) if not content.get(name) and not tables.get(name)]
    if missing:
        raise ConfigInvalid(f"kernels file {path} lacks {', '.join(missing)}")
    if base and base.gpu != get_gpu(content["gpu"]):
        raise ConfigInvalid(f"kernels file {path} is of {content['gpu']}, not of {base.gpu.name}")
    return Kernels(get_gpu(content["gpu"]), content["source"], tables)


def load_kernels(gpu: str, family: str, path: Path | None = None) -> Kernels:
    """The shipped tables, with those of a file that `python -m bench.gpu.rank_step` wrote in their place."""
    shipped = shipped_kernels(gpu, family)
    return read_kernels(path, shipped) if path else shipped


@cache
def shipped_kernels(gpu: str, family: str) -> Kernels:
    """The tables for that GPU and engine family; the one that vLLM uses where the other has none."""
    data = files("cluster") / "data"
    short = get_gpu(gpu).name.partition("-")[0].lower()
    for name in (f"kernels_{short}_{family}.json.gz", f"kernels_{short}_vllm.json.gz"):
        if (data / name).is_file():
            return read_kernels(Path(str(data / name)))
    raise ConfigInvalid(f"no kernels are shipped for {gpu}: measure them (bench/gpu) and pass the file")


def _place(axis: Floats, values: Floats) -> tuple[NDArray[np.int64], Floats]:
    index = np.clip(np.searchsorted(axis, values, side="right") - 1, 0, len(axis) - 2)
    part = (np.log(np.maximum(values, axis[0])) - np.log(axis[index])) / np.log(axis[index + 1] / axis[index])
    # Beyond the last batch the caller scales; beyond the last tokens the last slope goes on.
    return index, np.asarray(np.maximum(part, 0.0))


def _curve(table: Mapping[str, list[float]], sizes: Floats) -> Floats:
    """Log-log; beyond the last point at its speed, below the first at its time."""
    axis, seconds = np.asarray(table["bytes"], float), np.asarray(table["us"]) * US
    inside = np.exp(np.interp(np.log(np.maximum(sizes, axis[0])), np.log(axis), np.log(seconds)))
    return np.asarray(inside * np.maximum(sizes / axis[-1], 1.0))


def _shape(name: str) -> tuple[int, int]:
    first, _, second = name.partition("x")
    return int(first), int(second)


def _around(values: list[int], wanted: int) -> set[int]:
    below = max((value for value in values if value <= wanted), default=min(values))
    above = min((value for value in values if value >= wanted), default=max(values))
    return {below, above}


def _weights(corners: list[tuple[int, int]], n: int, k: int) -> dict[tuple[int, int], float]:
    """Bilinear in log n and log k."""
    weights = {}
    for corner in corners:
        weight = 1.0
        for axis, wanted in ((0, n), (1, k)):
            ends = sorted({c[axis] for c in corners})
            if len(ends) == 2:
                part = float(np.log(wanted / ends[0]) / np.log(ends[1] / ends[0]))
                weight *= part if corner[axis] == ends[1] else 1 - part
        weights[corner] = weight
    return weights


def _head_distance(name: str, heads: int, kv_heads: int) -> tuple[float, float]:
    h, kv = _shape(name)
    return abs(float(np.log(kv / kv_heads))), abs(float(np.log(h / heads)))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
