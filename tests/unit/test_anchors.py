"""Does the cost model agree with what others measured and published: memory, throughput, single kernels?"""

from __future__ import annotations

import csv
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from bench.cost_anchors import (
    COLUMNS,
    MEAN_TOLERANCE,
    ROW_TOLERANCE,
    SHIPPED,
    Anchor,
    geometric_mean,
    modelled_tokens_s,
    read_anchors,
)
from cluster.cost import CostModel
from cluster.hardware import get_gpu
from cluster.kernels import Kernels, shipped_kernels
from cluster.policy import StepShape
from cluster.rank_shapes import rank_gemms
from cluster.throughput import OfflineLoad, run_offline
from llama31.errors import ConfigInvalid
from llama31.parallel import ParallelPlan
from llama31.specs import get_spec

DATA = Path(__file__).parent.parent / "data" / "cost"
ANCHORS = read_anchors(Path(os.environ.get("LLAMA31_ANCHORS") or SHIPPED))
HEADER = ",".join(COLUMNS) + "\n"
# The mean of each model is asserted on the GPU that the service is made for.
ON_H100 = [anchor for anchor in ANCHORS if anchor.gpu.name == "H100-80GB"]


def model(name: str, plan: str, gpu: str = "H100-80GB", kv_dtype: str = "auto") -> CostModel:
    return CostModel(get_spec(name), ParallelPlan.parse(plan), get_gpu(gpu), kv_dtype=kv_dtype)


@cache
def ratio(anchor: Anchor) -> float:
    return modelled_tokens_s(anchor) / anchor.output_tokens_s


@pytest.mark.parametrize("logged_tokens", [468_752, 461_376])
def test_kv_tokens_of_70b_tp4_as_engines_log_them(logged_tokens: int) -> None:
    assert model("llama-3.1-70b", "tp4").kv_tokens == pytest.approx(logged_tokens, rel=0.03)


@pytest.mark.parametrize(
    "anchor", ANCHORS, ids=lambda a: f"{a.spec.name}-tp{a.tp}-{a.gpu.name}-{a.prompt_tokens}-{a.output_tokens}"
)
def test_published_throughput_of_each_row(anchor: Anchor) -> None:
    assert ratio(anchor) == pytest.approx(1.0, abs=ROW_TOLERANCE)


@pytest.mark.parametrize("name", sorted({anchor.spec.name for anchor in ON_H100}))
def test_published_throughput_on_average(name: str) -> None:
    ratios = [ratio(anchor) for anchor in ON_H100 if anchor.spec.name == name]
    assert geometric_mean(ratios) == pytest.approx(1.0, abs=MEAN_TOLERANCE)


def test_time_between_tokens_of_one_stream() -> None:
    """Published: vLLM 2026-04-22, 8B bf16 on one H100, 6.44 ms + 4.37e-5 ms a token of context."""
    cost = model("llama-3.1-8b", "tp1")
    for context, tolerance in ((1, 0.02), (1000, 0.02), (20_000, 0.05), (100_000, 0.12)):
        published_s = (6.44 + 4.37e-5 * context) * 1e-3
        assert cost.step_s(StepShape(decodes=1, decode_context_tokens=context)) == pytest.approx(
            published_s, rel=tolerance
        )


@pytest.mark.parametrize(("kv_dtype", "published", "tolerance"), [("auto", 450, 0.1), ("fp8", 517, 0.25)])
def test_eight_long_streams(kv_dtype: str, published: float, tolerance: float) -> None:
    """Published: the same post, eight at a time, 20,000 tokens in and 2,000 out."""
    result = run_offline(model("llama-3.1-8b", "tp1", kv_dtype=kv_dtype), OfflineLoad(80, 20_000, 2000, 8, 8192))
    assert result.output_tokens_s == pytest.approx(published, rel=tolerance)


def test_matrices_as_another_profiler_measured_them() -> None:
    kernels = shipped_kernels("H100-80GB", "vllm")
    # Their gate and up are two matrices, vLLM's are one.
    names = {"o_proj": ("o", 1), "down_proj": ("down", 1), "lm_head": ("lm_head", 1), "gate_proj": ("gate_up", 2)}
    ratios = []
    with (DATA / "llmservingsim_layers.csv").open() as file:
        for row in csv.DictReader(file):
            if row["layer"] in names:
                gemm, share = names[row["layer"]]
                n, k = rank_gemms(get_spec(f"llama-3.1-{row['model']}"), int(row["tp"]))[gemm]
                modelled_us = 1e6 * float(kernels.gemm_s("bfloat16", int(row["tokens"]), n, k))
                ratios.append(modelled_us / share / float(row["us"]))
    assert len(ratios) == 120
    assert geometric_mean(ratios) == pytest.approx(0.95, abs=0.05)
    assert all(0.68 < one < 1.25 for one in ratios)


def test_prefill_attention_as_another_profiler_measured_it() -> None:
    grid = shipped_kernels("H100-80GB", "vllm").prefill_attention("bfloat16", 16, 2)
    with (DATA / "llmservingsim_prefill_attention_70b_tp4.csv").open() as file:
        rows = [(int(row["tokens"]), float(row["us"])) for row in csv.DictReader(file)]
    for tokens, us in rows:
        assert 1e6 * float(grid.at(1, tokens)) == pytest.approx(us, rel=0.2)


@pytest.mark.parametrize(
    ("gpus", "elements", "us"), [(2, 1 << 20, 12.4), (4, 1 << 16, 5.8), (8, 1 << 20, 19.4), (8, 1 << 24, 177.8)]
)
def test_all_reduce_at_measured_points(gpus: int, elements: int, us: float) -> None:
    seconds = float(shipped_kernels("H100-80GB", "vllm").all_reduce_s(gpus, 2 * elements))
    assert seconds * 1e6 == pytest.approx(us, rel=0.01)


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
def test_a_matrix_that_is_left_out_is_found_again(dtype: str) -> None:
    """Leave one out: each measured shape with neighbours on both sides, by those neighbours."""
    whole = shipped_kernels("H100-80GB", "vllm")
    table = whole.tables["gemm"][dtype]
    errors = []
    for name, us in table["shapes"].items():
        n, k = map(int, name.split("x"))
        if not (1024 <= n <= 16384 and 1024 <= k <= 16384):
            continue
        rest = {other: times for other, times in table["shapes"].items() if other != name}
        reduced = Kernels(whole.gpu, "", {**whole.tables, "gemm": {dtype: {**table, "shapes": rest}}})
        modelled = reduced.gemm_s(dtype, table["tokens"], n, k)
        errors.append(np.abs(np.log(modelled / (np.asarray(us) * 1e-6))))
    typical, worst = np.median(np.concatenate(errors)), np.quantile(np.concatenate(errors), 0.95)
    assert len(errors) > 20
    assert typical < 0.08
    assert worst < 0.35


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model,gpu\n8B,H100\n", "lacks the columns tp, dtype, isl, osl, total_output_tok_s"),
        (HEADER, "has no rows"),
        (HEADER + "9B,H100,1,fp8,1,1,1\n", "line 2: model '9B' is none of 8B, 70B, 405B"),
        (HEADER + "8B,H100,1,fp4,1,1,1\n", "line 2: dtype 'fp4' is none of"),
        (HEADER + "8B,B300,1,fp8,1,1,1\n", "line 2: GPU 'B300' is not known"),
        (HEADER + "8B,H100,1,fp8,1,1,1\n8B,H100,1,fp8,x,1,1\n", "line 3: "),
        (HEADER + "8B,H100,1,fp8,1,1\n", "line 2: "),
        (HEADER + "8B,H100,1,fp8,1,1,0\n", "line 2: total_output_tok_s is '0'"),
    ],
)
def test_a_file_that_is_not_understood(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "anchors.csv"
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match=words):
        read_anchors(path)


def test_other_rows_of_the_same_form(tmp_path: Path) -> None:
    path = tmp_path / "anchors.csv"
    path.write_text(HEADER + 'Llama-3.1-70B,H100,4,FP8,20000,2000,"1,100"\n8b,A100-80GB,1,bf16,128,128,9000\n')
    first, second = read_anchors(path)
    assert (first.spec.name, first.tp, first.output_tokens_s) == ("llama-3.1-70b-fp8-all-linear", 4, 1100.0)
    assert (second.spec.name, second.gpu.name) == ("llama-3.1-8b", "A100-80GB")
    assert all(modelled_tokens_s(anchor) > 100 for anchor in (first, second))
