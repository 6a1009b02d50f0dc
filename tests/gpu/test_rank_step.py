"""Does the measurement of one rank run on a real GPU and come near the shipped tables?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.gpu import rank_step
from cluster.kernels import load_kernels, shipped_kernels

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_the_matrices_of_8b(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json.gz"
    arguments = ["--quick", "--models", "llama-3.1-8b", "--tps", "1", "--dtypes", "bfloat16", "--out", str(path)]
    assert rank_step.main(arguments) == 0
    gpu = rank_step.named_gpu(torch.cuda.get_device_name()).name
    measured, shipped = load_kernels(gpu, "vllm", path), shipped_kernels(gpu, "vllm")
    for n, k in ((6144, 4096), (28672, 4096)):
        times = [float(kernels.gemm_s("bfloat16", 64, n, k)) for kernels in (measured, shipped)]
        assert times[0] == pytest.approx(times[1], rel=0.5)
