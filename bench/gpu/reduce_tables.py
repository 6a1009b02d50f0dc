"""Which rows of aiconfigurator's kernel tables does Llama 3.1 need? Writes them as cluster/data/kernels_*.json.gz.

`python -m bench.gpu.reduce_tables SYSTEMS_DATA VIDUR_SEND_RECV OUT`; needs pyarrow, which the project does not.
"""

from __future__ import annotations

import csv
import gzip
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cluster.hardware import GPUS, Gpu
from cluster.kernels import HEAD_DIM, bracket, write_kernels
from cluster.rank_shapes import all_gemms, all_heads

SOURCE = "ai-dynamo/aiconfigurator 095f58a51c4ca8e61b66ec108d86f223f8d559ce (2026-08-21), Apache-2.0"
VIDUR = "microsoft/vidur data/profiling/network/h100_dgx, MIT"

# The matrices of 1.2.0rc5 were measured at few sizes on H200; both GPUs have the same version.
TRT_GEMM, TRT = "trtllm/1.3.0rc10", "trtllm/1.2.0rc5"
# Output name: GPU, system folder, folders of gemm, attention, all-reduce, NCCL.
TABLES = {
    "h100_vllm": ("H100-80GB", "h100_sxm", "vllm/0.24.0", "vllm/0.24.0", "vllm/0.24.0", "nccl/2.29.2"),
    "h100_tensorrt": ("H100-80GB", "h100_sxm", TRT_GEMM, TRT, TRT, "nccl/2.29.2"),
    "h200_vllm": ("H200-141GB", "h200_sxm", "vllm/0.24.0", "vllm/0.24.0", "vllm/0.24.0", "nccl/2.29.2"),
    "h200_tensorrt": ("H200-141GB", "h200_sxm", TRT_GEMM, TRT, TRT, "nccl/2.29.2"),
    "a100_vllm": ("A100-80GB", "a100_sxm", "trtllm/1.0.0", "vllm/0.14.0", "vllm/0.14.0", "nccl/2.27.3"),
}


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """All rows."""
    import pyarrow.parquet  # type: ignore[import-not-found]

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def reduce_gemm(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Only corners of the grid around the shapes of Llama 3.1."""
    times: dict[str, dict[tuple[int, int], dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["gemm_dtype"] in ("bfloat16", "fp8") and row["m"] > 0:
            times[row["gemm_dtype"]][row["n"], row["k"]][row["m"]] = row["latency"] * 1e3
    reduced: dict[str, Any] = {}
    for dtype, shapes in times.items():
        corners = {corner for shape in all_gemms() for corner in bracket(shapes, *shape)}
        tokens = sorted(set.intersection(*(set(shapes[c]) for c in corners)))
        reduced[dtype] = {
            "tokens": tokens,
            "shapes": {f"{n}x{k}": [shapes[n, k][m] for m in tokens] for n, k in sorted(corners)},
        }
    return reduced


def reduce_attention(rows: Iterable[Mapping[str, Any]], size: str) -> dict[str, Any]:
    """Grids of batch x tokens by KV dtype and heads per rank; a missing cell is null."""
    heads = set(all_heads())
    cells: dict[str, dict[str, dict[tuple[int, int], float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        key = (row["num_heads"], row["num_key_value_heads"] or row["num_heads"])
        fits = row["head_dim"] == HEAD_DIM and row.get("window_size", 0) == 0 and row["beam_width"] == 1
        if not fits or key not in heads or row["attn_dtype"] != attention_dtype(row, size):
            continue
        tokens = row["isl"] if size == "isl" else row["isl"] + row["step"]
        cells[row["kv_cache_dtype"]][f"{key[0]}x{key[1]}"][row["batch_size"], tokens] = row["latency"] * 1e3
    reduced: dict[str, Any] = {}
    for dtype, by_heads in cells.items():
        batches = sorted({b for grid in by_heads.values() for b, _ in grid})
        tokens_axis = sorted({t for grid in by_heads.values() for _, t in grid})
        reduced[dtype] = {
            "batch": batches,
            "tokens": tokens_axis,
            "heads": {
                name: [[grid.get((b, t)) for t in tokens_axis] for b in batches]
                for name, grid in sorted(by_heads.items())
            },
        }
    return reduced


def attention_dtype(row: Mapping[str, Any], size: str) -> str:
    """TensorRT-LLM computes prefill attention in FP8 where its KV cache is FP8; all else is in bfloat16."""
    is_fp8 = row["framework"] == "TRTLLM" and size == "isl" and row["kv_cache_dtype"] == "fp8"
    return "fp8" if is_fp8 else "bfloat16"


def reduce_all_reduce(custom: Iterable[Mapping[str, Any]], nccl: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """By GPUs and bytes, whichever of the engine's own kernel in a CUDA graph and NCCL is faster."""
    best: dict[int, dict[int, float]] = defaultdict(dict)
    for row in custom:
        if "eager" not in row.get("implementation", "") + row["kernel_source"]:
            at = best[row["num_gpus"]]
            at[2 * row["message_size"]] = min(row["latency"] * 1e3, at.get(2 * row["message_size"], float("inf")))
    for row in nccl:
        if row["op_name"] == "all_reduce" and row["nccl_dtype"] == "half" and row["num_gpus"] in best:
            at = best[row["num_gpus"]]
            if 2 * row["message_size"] in at:
                at[2 * row["message_size"]] = min(row["latency"] * 1e3, at[2 * row["message_size"]])
    return {str(gpus): {"bytes": sorted(at), "us": [at[size] for size in sorted(at)]} for gpus, at in best.items()}


def reduce_send(path: Path) -> dict[str, Any]:
    """Point to point, median, by bytes: within a node ("nvlink") and between nodes ("network")."""
    rows: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            scope = {"1": "network", "2": "nvlink"}.get(row["devices_per_node"])
            if scope and row["num_workers"] == "2":
                rows[scope][int(row["size"])].append(float(row["time_stats.send_recv.median"]) * 1e3)
    reduced = {}
    for scope, by_size in rows.items():
        sizes = sorted(by_size)
        kept = [size for i, size in enumerate(sizes) if i % max(1, len(sizes) // 24) == 0 or size == sizes[-1]]
        reduced[scope] = {"bytes": kept, "us": [sorted(by_size[s])[len(by_size[s]) // 2] for s in kept]}
    return reduced


def reduce_table(data: Path, send_recv: Path, name: str) -> tuple[Gpu, dict[str, Any]]:
    """One file's content."""
    gpu, system, gemm, attention, custom, nccl = TABLES[name]
    folder = data / system
    tables = {
        "gemm": reduce_gemm(read_parquet(folder / "gemm" / gemm / "gemm_perf.parquet")),
        "attention_context": reduce_attention(
            read_parquet(folder / "attention" / attention / "context_attention_perf.parquet"), "isl"
        ),
        "attention_generation": reduce_attention(
            read_parquet(folder / "attention" / attention / "generation_attention_perf.parquet"), "step"
        ),
        "all_reduce": reduce_all_reduce(
            read_parquet(folder / "comm" / custom / "custom_allreduce_perf.parquet"),
            read_parquet(folder / "comm" / nccl / "nccl_perf.parquet"),
        ),
        "send": reduce_send(send_recv),
    }
    return GPUS[gpu], tables


def main() -> None:
    """Writes every file of TABLES."""
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    data, send_recv, out = map(Path, sys.argv[1:])
    for name, (_, system, gemm, attention, custom, nccl) in TABLES.items():
        gpu, tables = reduce_table(data, send_recv, name)
        parts = f"gemm {gemm}, attention {attention}, all-reduce {custom} and {nccl}"
        source = f"{SOURCE}: {system}, {parts}; send: {VIDUR}"
        write_kernels(out / f"kernels_{name}.json.gz", gpu.name, source, tables)


if __name__ == "__main__":
    main()
