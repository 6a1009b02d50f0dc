"""`make demo` with four ranks on two nodes, as a newcomer would type it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.demo
@pytest.mark.usefixtures("no_shared_cluster")
@pytest.mark.timeout(300)
def test_make_demo_shows_four_ranks_on_two_nodes(standin_checkpoint: Path, tmp_path: Path) -> None:
    own = ("RAY_", "TMPDIR", "VLLM_", "OMP_", "TORCH_", "MAKE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    environment["XDG_RUNTIME_DIR"] = str(tmp_path)
    demo = subprocess.run(
        ["make", "demo", "PLAN=tp2pp2"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    ranks = re.findall(r"rank (\d)  stage (\d)  tp (\d)  node (\w+)", demo.stdout)
    assert [(rank, stage, tp) for rank, stage, tp, _ in ranks] == [
        ("0", "0", "0"),
        ("1", "0", "1"),
        ("2", "1", "0"),
        ("3", "1", "1"),
    ]
    assert len({node for *_, node in ranks}) == 2
    assert "Paris" in demo.stdout
    assert re.search(r"TTFT \d+\.\d\d s, \d+\.\d tokens/s", demo.stdout)
