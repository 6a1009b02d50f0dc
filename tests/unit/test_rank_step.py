"""Does the measurement of one rank ask for the right kernels, and write what the cost model reads? Tiny, on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.gpu import rank_step
from bench.gpu.rank_kernels import Device, measure_rank
from bench.gpu.rank_plan import RankPlan, build_plan
from cluster.kernels import load_kernels, write_kernels
from cluster.rank_shapes import rank_gemms, rank_heads
from llama31.errors import ConfigInvalid, ModelNotFound, PlanInvalid
from llama31.specs import get_spec

TINY = RankPlan(
    gemms=((64, 32), (128, 64)),
    heads=((4, 2),),
    tokens=(1, 4),
    batches=(1, 2),
    contexts=(2, 8),
    prompts=(1, 2),
    prompt_tokens=(4, 8),
)


def test_a_plan_has_each_shape_once() -> None:
    plan = build_plan(["llama-3.1-8b", "llama-3.1-70b"], [1, 8], quick=False)
    wanted = {
        shape
        for name in ("llama-3.1-8b", "llama-3.1-70b")
        for tp in (1, 8)
        for shape in rank_gemms(get_spec(name), tp).values()
    }
    assert set(plan.gemms) == wanted
    assert len(plan.gemms) == len(wanted)
    assert rank_heads(get_spec("llama-3.1-70b"), 8) in plan.heads
    assert plan.tokens[0] == 1
    assert list(plan.contexts) == sorted(plan.contexts)
    assert len(build_plan(["llama-3.1-8b"], [1], quick=True).tokens) < len(plan.tokens)


@pytest.mark.parametrize(("model", "tp", "error"), [("llama-9", 1, ModelNotFound), ("llama-3.1-8b", 3, PlanInvalid)])
def test_what_cannot_be_planned(model: str, tp: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        build_plan([model], [tp], quick=True)


def test_a_measurement_is_read_by_the_cost_model(tmp_path: Path) -> None:
    said: list[str] = []
    tables = measure_rank(Device("cpu"), TINY, ("bfloat16",), said.append)
    assert len(said) == 4
    path = tmp_path / "kernels.json.gz"
    write_kernels(path, "H100-80GB", "a CPU", tables)
    kernels = load_kernels("H100-80GB", "vllm", path)
    assert kernels.source == "a CPU"
    measured_us = kernels.tables["gemm"]["bfloat16"]["shapes"]["64x32"]
    assert len(measured_us) == 2
    assert 1e6 * float(kernels.gemm_s("bfloat16", 4, 64, 32)) == pytest.approx(measured_us[1])
    assert kernels.decode_attention("bfloat16", 4, 2).seconds.shape == (2, 2)
    assert float(kernels.prefill_attention("bfloat16", 4, 2).at(1, 8)) > 0


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA H200", "H200-141GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
    ],
)
def test_the_gpu_by_its_own_name(reported: str, name: str) -> None:
    assert rank_step.named_gpu(reported).name == name


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="'NVIDIA L4' is not known"):
        rank_step.named_gpu("NVIDIA L4")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "torch finds no CUDA device here"),
        (["--device", "cpu"], "say with --gpu whose file it is to look like"),
        (["--device", "cpu", "--gpu", "B9"], "'B9' is not known"),
        (["--device", "cpu", "--gpu", "H100", "--tps", "x"], "invalid literal for int"),
        (["--device", "cpu", "--gpu", "H100", "--models", "llama-9"], "llama-9"),
    ],
)
def test_without_a_gpu_and_with_wrong_arguments(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rank_step.main(arguments) == 2
    assert words in capsys.readouterr().err
