"""Does the cost model give the throughput that TensorRT-LLM publishes? `python -m bench.cost_anchors [FILE]`."""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.results_page import save_page
from cluster.cost import CostModel
from cluster.hardware import Gpu, get_gpu
from cluster.throughput import OfflineLoad, run_offline
from llama31.errors import ConfigInvalid, PlanInvalid
from llama31.parallel import ParallelPlan
from llama31.specs import ModelSpec, get_spec

N = TypeVar("N", int, float)

COLUMNS = ("model", "gpu", "tp", "dtype", "isl", "osl", "total_output_tok_s")
SUFFIXES = {"fp8": "-fp8-all-linear", "bf16": "", "bfloat16": "", "fp16": ""}
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

ROW_TOLERANCE = 0.3
MEAN_TOLERANCE = 0.15


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
    if not rows:
        raise ConfigInvalid(f"{path} has no rows")
    anchors = []
    for line, row in enumerate(rows, start=2):
        try:
            anchors.append(_anchor({column: row[column] or "" for column in COLUMNS}))
        except (ValueError, ConfigInvalid) as error:
            raise ConfigInvalid(f"{path}, line {line}: {error}") from error
    return anchors


def _anchor(row: Mapping[str, str]) -> Anchor:
    size = next((part for part in ("405b", "70b", "8b") if part in row["model"].lower()), None)
    if size is None:
        raise ValueError(f"model {row['model']!r} is none of 8B, 70B, 405B")
    if row["dtype"].lower() not in SUFFIXES:
        raise ValueError(f"dtype {row['dtype']!r} is none of {', '.join(SUFFIXES)}")
    return Anchor(
        spec=get_spec(f"llama-3.1-{size}{SUFFIXES[row['dtype'].lower()]}"),
        gpu=get_gpu(row["gpu"]),
        tp=_positive(int, row, "tp"),
        prompt_tokens=_positive(int, row, "isl"),
        output_tokens=_positive(int, row, "osl"),
        output_tokens_s=_positive(float, row, "total_output_tok_s"),
    )


def _positive(kind: Callable[[str], N], row: Mapping[str, str], column: str) -> N:
    value = kind(row[column].replace(",", ""))
    if not 0 < value < math.inf:
        raise ValueError(f"{column} is {row[column]!r}")
    return value


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


def summary(ratios: Mapping[Anchor, float]) -> dict[str, float]:
    """Geometric means of model/published by model, tp and GPU."""
    groups: dict[str, list[float]] = {}
    for anchor, ratio in ratios.items():
        groups.setdefault(f"{anchor.spec.name} tp{anchor.tp} {anchor.gpu.name}", []).append(ratio)
    return {name: round(geometric_mean(group), 3) for name, group in groups.items()}


def table(ratios: Mapping[Anchor, float]) -> list[str]:
    """Markdown, one row each."""
    lines = ["| model | GPU | tp | in / out | published tok/s | modelled | ratio |", "|---|---|---|---|---|---|---|"]
    for anchor, ratio in ratios.items():
        published, lengths = anchor.output_tokens_s, f"{anchor.prompt_tokens} / {anchor.output_tokens}"
        row = (anchor.spec.name, anchor.gpu.name, anchor.tp, lengths)
        lines.append(f"| {' | '.join(map(str, row))} | {published:,.0f} | {ratio * published:,.0f} | {ratio:.2f} |")
    return lines


def main() -> int:
    """Prints every row, and the summary as the last line."""
    parser = argparse.ArgumentParser(prog="python -m bench.cost_anchors", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=SHIPPED, help="CSV with " + ", ".join(COLUMNS))
    parser.add_argument("--quick", action="store_true", help="the same: it takes a second")
    parser.add_argument("--save", action="store_true", help="write bench/results/cost_anchors.md")
    args = parser.parse_args()
    try:
        ratios = {anchor: modelled_tokens_s(anchor) / anchor.output_tokens_s for anchor in read_anchors(args.file)}
    except (ConfigInvalid, PlanInvalid, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = table(ratios)
    print("\n".join(rows))
    means = summary(ratios)
    ok = all(abs(r - 1) <= ROW_TOLERANCE for r in ratios.values())
    ok = ok and all(abs(mean - 1) <= MEAN_TOLERANCE for mean in means.values())
    result = {"figures": means, "targets": {"row": ROW_TOLERANCE, "geometric_mean": MEAN_TOLERANCE}, "ok": ok}
    if args.save:
        save_page(
            "cost_anchors",
            "The cost model against TensorRT-LLM's published throughput",
            "python -m bench.cost_anchors --save",
            "Published: TensorRT-LLM 1.0, perf-overview.md, fp8 of every linear layer, H100 and H200. The rest is "
            "modelled: every step of the published run, from kernels measured on the same GPUs. Nothing is fitted to "
            "these rows (docs/cost-model.md).",
            rows,
            result,
        )
    print(json.dumps(result))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
