"""How long do the kernels of one rank take on this device? With torch alone, in CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from torch.nn.functional import scaled_dot_product_attention

from bench.gpu.rank_plan import RankPlan
from cluster.kernels import HEAD_DIM

# Weights are read from HBM in an engine, so more of them than the second-level cache holds take turns.
ROTATED_BYTES = 256 << 20
ROTATED_AT_MOST = 16
SAMPLES = 5
CALLS = 16
# No more than this share of the free memory for one tensor set; larger cells stay empty and are extrapolated.
MEMORY_SHARE = 0.4
CPU_BYTES = 1 << 30

Kernel = Callable[[int], object]


class Device:
    """The one device that is measured; `calls` of a kernel are one sample."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.is_gpu = kind == "cuda"

    @property
    def free_bytes(self) -> int:
        """What tensors may take now."""
        return int(torch.cuda.mem_get_info()[0]) if self.is_gpu else CPU_BYTES

    def seconds(self, kernel: Kernel, calls: int = CALLS) -> float:
        """Median time of one call; `kernel` gets the number of the call, to take turns with its inputs."""
        kernel(0)
        if not self.is_gpu:
            return median(self._cpu_s(kernel) for _ in range(SAMPLES))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in range(calls):
                kernel(call)
        graph.replay()
        return median(self._graph_s(graph) for _ in range(SAMPLES)) / calls

    @staticmethod
    def _cpu_s(kernel: Kernel) -> float:
        began_s = time.perf_counter()
        kernel(0)
        return time.perf_counter() - began_s

    @staticmethod
    def _graph_s(graph: Any) -> float:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1e3


def measure_gemm(device: Device, dtype: str, n: int, k: int, tokens: int) -> float:
    """Seconds of `out(tokens, n) = x(tokens, k) W(k, n)`; FP8 with one scale per tensor."""
    kind = torch.float8_e4m3fn if dtype == "fp8" else torch.bfloat16
    size = n * k * (1 if dtype == "fp8" else 2)
    copies = max(1, min(ROTATED_AT_MOST, -(-ROTATED_BYTES // size))) if device.is_gpu else 1
    weights = [torch.randn(n, k, device=device.kind, dtype=torch.bfloat16).to(kind) for _ in range(copies)]
    x = torch.randn(tokens, k, device=device.kind, dtype=torch.bfloat16).to(kind)
    if dtype != "fp8":
        return device.seconds(lambda call: torch.nn.functional.linear(x, weights[call % copies]))
    one = torch.ones((), device=device.kind)

    def multiply(call: int) -> object:
        return torch._scaled_mm(x, weights[call % copies].t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    return device.seconds(multiply)


def measure_attention(device: Device, heads: int, kv_heads: int, batch: int, queries: int, keys: int) -> float | None:
    """Seconds of one layer's attention; None where its tensors do not fit. Queries are causal if there are several."""
    kv_bytes = 2 * batch * kv_heads * keys * HEAD_DIM * 2
    if kv_bytes + 2 * batch * heads * queries * HEAD_DIM * 2 > MEMORY_SHARE * device.free_bytes:
        return None
    query = torch.randn(batch, heads, queries, HEAD_DIM, device=device.kind, dtype=torch.bfloat16)
    key, value = (
        torch.randn(batch, kv_heads, keys, HEAD_DIM, device=device.kind, dtype=torch.bfloat16) for _ in range(2)
    )
    is_causal = queries > 1
    return device.seconds(
        lambda _: scaled_dot_product_attention(query, key, value, is_causal=is_causal, enable_gqa=True), calls=4
    )


def measure_rank(device: Device, plan: RankPlan, dtypes: tuple[str, ...], progress: Callable[[str], None]) -> Any:
    """Tables in the form of `cluster.kernels`, in microseconds, without collectives."""
    tables: dict[str, Any] = {"gemm": {}}
    for dtype in dtypes:
        shapes = {}
        for n, k in plan.gemms:
            progress(f"gemm {dtype} {n}x{k}")
            shapes[f"{n}x{k}"] = [1e6 * measure_gemm(device, dtype, n, k, tokens) for tokens in plan.tokens]
        tables["gemm"][dtype] = {"tokens": list(plan.tokens), "shapes": shapes}
    for kernel, batches, sizes in (
        ("attention_generation", plan.batches, plan.contexts),
        ("attention_context", plan.prompts, plan.prompt_tokens),
    ):
        grids = {}
        for heads, kv_heads in plan.heads:
            progress(f"{kernel} {heads} heads, {kv_heads} KV heads")
            grids[f"{heads}x{kv_heads}"] = [
                [_us(_attention(device, kernel, heads, kv_heads, batch, size)) for size in sizes] for batch in batches
            ]
        tables[kernel] = {"bfloat16": {"batch": list(batches), "tokens": list(sizes), "heads": grids}}
    return tables


def _attention(device: Device, kernel: str, heads: int, kv_heads: int, batch: int, size: int) -> float | None:
    queries = 1 if kernel == "attention_generation" else size
    return measure_attention(device, heads, kv_heads, batch, queries, size)


def _us(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6


def measure_all_reduce(kind: str, gpus: int, sizes: tuple[int, ...], port: int) -> Any:
    """`{"bytes", "us"}` of all-reduce over so many ranks of this node: NCCL, or gloo on CPUs."""
    context = torch.multiprocessing.get_context("spawn")
    times = context.Queue()
    torch.multiprocessing.spawn(_reduce_rank, args=(kind, gpus, sizes, port, times), nprocs=gpus)
    return {"bytes": list(sizes), "us": times.get()}


def _reduce(tensor: torch.Tensor, call: int) -> None:
    torch.distributed.all_reduce(tensor)


def _reduce_rank(rank: int, kind: str, gpus: int, sizes: tuple[int, ...], port: int, times: Any) -> None:
    if kind == "cuda":
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        "nccl" if kind == "cuda" else "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=gpus
    )
    device = Device(kind)
    measured = []
    for size in sizes:
        tensor = torch.ones(size // 2, device=kind, dtype=torch.bfloat16)
        measured.append(1e6 * device.seconds(partial(_reduce, tensor)))
    if rank == 0:
        times.put(measured)
    torch.distributed.destroy_process_group()
