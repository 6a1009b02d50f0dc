"""Does the cost model give the throughput that TensorRT-LLM publishes? `python -m bench.cost_anchors [FILE]`."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.cost import CostModel
from cluster.hardware import Gpu, get_gpu
from cluster.throughput import OfflineLoad, run_offline
from llama31.errors import ConfigInvalid
from llama31.parallel import ParallelPlan
from llama31.specs import ModelSpec, get_spec

COLUMNS = ("model", "gpu", "tp", "dtype", "isl", "osl", "total_output_tok_s")
SHIPPED = Path(__file__).parent / "data" / "trtllm_v1.0_perf_overview_llama.csv"

# How TensorRT-LLM's perf-overview.md (v1.0) was measured: requests by (isl, osl); share of the free memory.
REQUESTS: Mapping[tuple[int, int], int] = {
    (128, 128): 30000,
    (128, 2048): 3000,
    (128, 4096): 1500,
    (500, 2000): 3000,
    (1000, 1000): 3000,
    (1000, 2000): 1500,
    (2048, 128): 3000,
    (2048, 2048): 1500,
    (5000, 500): 1500,
    (20000, 2000): 1000,
}
OTHER_REQUESTS = 1500
KV_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Anchor:
    """One published row."""

    spec: ModelSpec
    gpu: Gpu
    tp: int
    prompt_tokens: int
    output_tokens: int
    output_tokens_s: float


def read_anchors(path: Path) -> list[Anchor]:
    """Rows of a file with `COLUMNS`. Raises: ConfigInvalid with the line that is not understood."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ConfigInvalid(f"{path} lacks the columns {', '.join(missing)}")
        rows = list(reader)
    anchors = []
    for line, row in enumerate(rows, start=2):
        try:
            anchors.append(_anchor(row))
        except (ValueError, AttributeError) as error:
            raise ConfigInvalid(f"{path}, line {line}: {error}") from error
    return anchors


def _anchor(row: Mapping[str, str]) -> Anchor:
    size = next((part for part in ("405b", "70b", "8b") if part in row["model"].lower()), None)
    if size is None:
        raise ValueError(f"model {row['model']!r} is none of 8B, 70B, 405B")
    suffix = "-fp8-all-linear" if "fp8" in row["dtype"].lower() else ""
    return Anchor(
        spec=get_spec(f"llama-3.1-{size}{suffix}"),
        gpu=get_gpu(row["gpu"]),
        tp=int(row["tp"]),
        prompt_tokens=int(row["isl"]),
        output_tokens=int(row["osl"]),
        output_tokens_s=float(row["total_output_tok_s"].replace(",", "")),
    )


def batch_settings(anchor: Anchor) -> tuple[int, int]:
    """Largest batch and step tokens as trtllm-bench sets them.

    Source: TensorRT-LLM 1.0, tensorrt_llm/bench/build/tuning.py, calc_engine_setting and finetune_setting.
    """
    spec, is_fp8 = anchor.spec, anchor.spec.quantization != "none"
    kv_heads = max(anchor.tp, spec.kv_heads)
    token_bytes = 2 * spec.layers * kv_heads * spec.head_dim * (1 if is_fp8 else 2)
    free_bytes = anchor.gpu.usable_bytes * anchor.tp - spec.param_count() * (1 if is_fp8 else 2)
    fit = KV_SHARE * free_bytes / token_bytes / (anchor.prompt_tokens + anchor.output_tokens)
    batch = min(fit, 4096)
    tokens = min(batch * (1 + anchor.prompt_tokens / anchor.output_tokens), 32768)
    unit = 32 if batch < 256 else 128 if batch < 1024 else 256
    token_unit = 256 if tokens < 4096 else 512 if tokens < 8192 else 1024
    return max(64, unit * math.ceil(batch / unit)), max(2048, token_unit * math.ceil(tokens / token_unit))


def modelled_tokens_s(anchor: Anchor) -> float:
    """Output tokens per second of the whole published run."""
    max_batch, max_tokens = batch_settings(anchor)
    cost = CostModel(
        anchor.spec,
        ParallelPlan(anchor.tp),
        anchor.gpu,
        kv_dtype="auto" if anchor.spec.quantization == "none" else "fp8",
        family="tensorrt",
        memory_share=KV_SHARE,
        max_step_tokens=max_tokens,
        max_running=max_batch,
    )
    shape = anchor.prompt_tokens, anchor.output_tokens
    return run_offline(
        cost, OfflineLoad(REQUESTS.get(shape, OTHER_REQUESTS), *shape, max_batch, max_tokens)
    ).output_tokens_s


def geometric_mean(ratios: Sequence[float]) -> float:
    """Of positive numbers."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))
