"""Do the values that `llama31 plan --emit values` writes render as the plan says?"""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.cli import main
from tests.k8s.chart import groups, render

pytestmark = pytest.mark.k8s


@pytest.mark.parametrize(
    ("model", "hardware", "pods", "gpus"),
    [
        ("llama-3.1-8b", "1x2xH100", 1, 1),
        ("llama-3.1-405b-fp8", "1x8xH100", 1, 8),
        ("llama-3.1-405b", "2x8xH100", 2, 8),
    ],
)
def test_planned_values_render(model: str, hardware: str, pods: int, gpus: int, tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    ask = [
        "plan",
        model,
        "--hardware",
        hardware,
        "--input-tokens",
        "500",
        "--output-tokens",
        "100",
        "--kv-dtype",
        "bf16",
    ]
    assert main([*ask, "--rate", "0.5", "--ttft", "5", "--itl", "1", "--emit", "values", "--out", str(file)]) == 0
    group = groups(render("-f", str(file)))["engine"]
    assert group.get("numOfHosts", 1) == pods
    container = group["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == str(gpus)
