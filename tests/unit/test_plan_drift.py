"""Is every kind of drift from a plan seen, and nothing called drift that is none?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deployments import verify_command
from deployments.cli import main
from deployments.config_sections import PlannedConfig
from deployments.plan_drift import Percentiles, Planned, Running, RunningReplica, compare, read_planned, table_lines
from deployments.verify_command import look, own_plan, percentile, read_numbers
from llama31.errors import ConfigInvalid

FIGURES = PlannedConfig(kv_tokens=465_000, rate_per_s=10, ttft_p99_s=1, itl_p99_s=0.05, output_tokens_per_s=3000)
PLANNED = Planned(FIGURES, "llama-3.1-70b", "tp4", 2)
REPLICA = RunningReplica("r1", "llama-3.1-70b", "tp4", True, 464_992)
RUNNING = Running(
    (REPLICA, replace(REPLICA, replica_id="r2")), 9.0, 2700, Percentiles(1.2, 200), Percentiles(0.06, 50_000)
)


@pytest.mark.parametrize(
    ("running", "drifted"),
    [
        (RUNNING, []),
        (replace(RUNNING, replicas=(replace(REPLICA, model="llama-3.1-8b"),) * 2), ["model"]),
        (replace(RUNNING, replicas=(REPLICA, replace(REPLICA, plan="tp8"))), ["plan"]),
        (replace(RUNNING, replicas=(REPLICA,)), ["ready replicas"]),
        (replace(RUNNING, replicas=(REPLICA, replace(REPLICA, ready=False))), ["ready replicas"]),
        (replace(RUNNING, replicas=(REPLICA, replace(REPLICA, kv_tokens=400_000))), ["KV tokens per replica"]),
        (replace(RUNNING, replicas=(REPLICA, replace(REPLICA, kv_tokens=None))), []),
        (replace(RUNNING, ttft=Percentiles(1.31, 200)), ["TTFT p99 ms"]),
        (replace(RUNNING, ttft=Percentiles(9.0, 19)), []),
        (replace(RUNNING, itl=Percentiles(0.1, 200)), ["ITL p99 ms"]),
        # More load than planned explains slowness; it is the drift itself.
        (replace(RUNNING, requests_per_s=12.0, ttft=Percentiles(9.0, 200)), ["requests/s"]),
        (Running((), 0.0, 0.0, Percentiles(0, 0), Percentiles(0, 0)), ["model", "plan", "ready replicas"]),
    ],
)
def test_drift(running: Running, drifted: list[str]) -> None:
    rows = list(compare(PLANNED, running))
    assert [row.what for row in rows if row.state == "drift"] == drifted
    lines = list(table_lines(rows))
    assert lines[0].split() == ["planned", "running"]
    assert len(lines) == len(rows) + 1


def page(requests: int, late: int, kv: int = 464_992) -> str:
    """One node's metrics after so many requests, some of them in the second bucket."""
    return f"""# TYPE llama31_ttft_seconds histogram
llama31_ttft_seconds_bucket{{le="0.5",model="m"}} {requests - late}
llama31_ttft_seconds_bucket{{le="1.5",model="m"}} {requests}
llama31_ttft_seconds_bucket{{le="+Inf",model="m"}} {requests}
# TYPE llama31_replica_tokens_total counter
llama31_replica_tokens_total{{phase="decode",replica="r1"}} {100 * requests}
llama31_replica_tokens_total{{phase="prefill",replica="r1"}} {9000 * requests}
# TYPE llama31_replica_kv_total_tokens gauge
llama31_replica_kv_total_tokens{{replica="r1"}} {kv}
# TYPE llama31_planned_kv_tokens gauge
llama31_planned_kv_tokens{{model="m"}} 465000
"""


def test_a_window_is_the_difference_of_two_looks_over_all_nodes() -> None:
    before = read_numbers([page(100, 0), page(0, 0)])
    after = read_numbers([page(150, 10), page(50, 10)])
    seen = percentile(after, before, "llama31_ttft_seconds")
    # Of 100 requests 80 took up to 0.5 s: the 99th lies at 19 of 20 in the next bucket.
    assert (seen.samples, seen.p99_s) == (100, pytest.approx(0.5 + 19 / 20))
    assert after.sums["decode"] - before.sums["decode"] == 100 * 100
    assert after.kv_tokens == {"r1": 464_992}
    assert percentile(after, after, "llama31_ttft_seconds").samples == 0


def test_a_look_asks_every_node_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"http://a": [page(0, 0), page(20, 0)], "http://b": [page(0, 0), page(0, 0)]}
    monkeypatch.setattr(verify_command, "fetch", lambda url: pages[url].pop(0))
    slept: list[float] = []
    planned, running = look((), pages, 4.0, PLANNED, slept.append)
    assert (slept, planned) == ([4.0], PLANNED)
    assert (running.requests_per_s, running.output_tokens_per_s) == (5.0, 500.0)


def test_a_service_without_a_plan_says_so() -> None:
    with pytest.raises(ConfigInvalid, match="deployed without a plan"):
        own_plan({})


@pytest.mark.parametrize("text", ["{}", "plans: []", "plans: [{rank: 1}]", "planned: {kv_tokens: 1}"])
def test_a_file_that_is_no_plan_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    assert main(["verify", "--plan", str(file)]) == 1
    error = capsys.readouterr().err
    assert "is no plan: give what `llama31 plan --json`" in error or "has no plan of rank 1" in error


def test_a_plan_is_read_from_every_form_that_the_planner_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["plan", "llama-3.1-8b", "--hardware", "1x1xH100", "--input-tokens", "500", "--output-tokens", "100"]
    forms = (["--json"], ["--emit", "config"], ["--emit", "values"])
    read = []
    for options in forms:
        assert main([*ask, "--rate", "2", "--top", "1", *options, "--out", str(tmp_path / "plan")]) == 0
        read.append(read_planned(verify_command.read_yaml(str(tmp_path / "plan")), "plan"))
    capsys.readouterr()
    assert {(plan.model, plan.plan, plan.replicas) for plan in read} == {("llama-3.1-8b", "tp1", 1)}
    assert len({plan.figures.kv_tokens for plan in read}) == 1
    assert read[0].figures.ttft_p99_s == pytest.approx(read[1].figures.ttft_p99_s, abs=1e-4)
