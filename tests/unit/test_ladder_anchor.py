"""Are ladders of other people read as they are, and does the simulator meet one?"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.simulate_ladder import (
    GROUPS,
    KV_TOKENS,
    LADDER,
    OUTPUT_TOKENS,
    PREFIX_TOKENS,
    QUESTION_TOKENS,
    QUESTIONS,
    RATIO,
    STAGES,
    Row,
    SynchronousEngine,
    read_ladder,
    simulate_policy,
    stages_for,
)
from cluster.cost import CostModel
from cluster.hardware import get_gpu
from cluster.report import draw_latencies
from cluster.sim_fleet import SimFleet
from cluster.sim_ingress import Policies
from cluster.simulator import simulate
from cluster.workload import Request, SharedPrefixes, Workload
from deployments.policies.router import LeastTokens
from llama31.errors import ConfigInvalid
from llama31.parallel import ParallelPlan
from llama31.specs import get_spec
from tests.unit.sim_naive import LineCost

HEAD = "qps,policy,output_tok_s\n"


@pytest.mark.parametrize("policy", ["precise-scheduling", "random-scheduling"])
def test_anchor_llmd_ladder_at_3_and_10(policy: str) -> None:
    published = {row.qps: row for row in read_ladder(LADDER) if row.policy == policy}
    cost = SynchronousEngine(CostModel(get_spec("llama-3.1-70b"), ParallelPlan(4, 1), get_gpu("H100")), KV_TOKENS)
    prompts = SharedPrefixes(GROUPS, QUESTIONS, PREFIX_TOKENS, QUESTION_TOKENS, OUTPUT_TOKENS, 64).prompts(1)
    stages = [stage for stage in STAGES if stage[0] in (9, 3, 10)]
    for row in simulate_policy(policy, cost, prompts, stages, seed=1):
        assert RATIO[0] <= row.tokens_per_s / published[row.qps].tokens_per_s <= RATIO[1]


def test_columns_beside_those_needed_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "ladder.csv"
    path.write_text(HEAD + "7,precise,100\n3,random-scheduling,50\n")
    first, second = read_ladder(path)
    assert (first.qps, first.policy, first.tokens_per_s) == (7, "precise-scheduling", 100)
    assert second.policy == "random-scheduling"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("", "is missing, or there is no row"),
        ("qps,policy\n1,random\n", "output_tok_s is missing"),
        (HEAD + "x,random,1\n", "line 2"),
        (HEAD + "3,random,1\n0,random,1\n", "line 3"),
        (HEAD + "3,sticky,1\n", "a policy of precise-scheduling"),
        (HEAD + "3,random\n", "line 2"),
    ],
)
def test_broken_ladders_are_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "ladder.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigInvalid, match=words):
        read_ladder(path)


def test_other_rates_get_a_stage() -> None:
    stages = stages_for([Row(7.2, "ours", 1, 1), Row(3, "ours", 1, 1)])
    assert stages[0] == (9, 30)
    assert (7.2, pytest.approx(100)) in stages
    assert [rate for rate, _ in stages[1:]] == sorted(rate for rate, _ in stages[1:])


def test_plots_are_drawn(tmp_path: Path) -> None:
    requests = [Request(0.0, 10, 5), Request(1.0, 10, 5)]
    report = simulate(Workload(requests), SimFleet(LineCost(), 1), Policies(LeastTokens))
    draw_latencies({"one": report}, tmp_path / "latencies")
    assert (tmp_path / "latencies.png").stat().st_size > 1000
    assert "<svg" in (tmp_path / "latencies.svg").read_text()
