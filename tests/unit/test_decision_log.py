"""The autoscaler's log: every decision comes back, replays equal, and a broken file is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.policy import ScalerMemory
from deployments.cli import main
from deployments.decision_log import Decision, DecisionLog, last_decision, read_decisions
from deployments.policies.autoscaler import SloAutoscaler
from llama31.errors import ConfigInvalid
from tests.unit.test_autoscaler import RULES, fleet


def written(path: Path, decisions: int = 40, largest_bytes: int = 1 << 20) -> list[Decision]:
    """A log of a load that rises and falls."""
    log, memory, found = DecisionLog(path, RULES, largest_bytes), ScalerMemory(), []
    for number in range(decisions):
        picture = fleet(6.0 if 5 < number < 20 else 0.5, 5.0 * number, ready=memory.target or 1)
        scale, after = SloAutoscaler(RULES).decide(picture, memory)
        found.append(Decision(picture, memory, scale, after))
        log.write(found[-1])
        memory = after
    return found


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "autoscaler.jsonl"
    decisions = written(path)
    assert [decision for _, decision in read_decisions(path)] == decisions
    assert {rules for rules, _ in read_decisions(path)} == {RULES}
    assert last_decision(path) == decisions[-1]
    assert path.stat().st_mode & 0o077 == 0


def test_a_line_that_was_cut_costs_itself_alone(tmp_path: Path) -> None:
    """As a controller leaves it that is killed while it writes."""
    path = tmp_path / "autoscaler.jsonl"
    before = written(path, 3)
    with path.open("ab") as file:
        file.write(b'{"fleet": {"now_s"')
    after = written(path, 2)
    assert [decision for _, decision in read_decisions(path)] == before + after
    assert last_decision(path) == after[-1]


def test_the_log_is_bounded_and_each_file_can_be_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "autoscaler.jsonl"
    written(path, 200, largest_bytes=20_000)
    older = path.with_name("autoscaler.jsonl.1")
    assert sorted(tmp_path.iterdir()) == [path, older]
    assert max(file.stat().st_size for file in (path, older)) < 22_000
    assert all(list(read_decisions(file)) for file in (path, older))


def test_replay_tells_whether_all_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "autoscaler.jsonl"
    decisions = written(path)
    assert main(["replay", str(path)]) == 0
    assert "all decisions are the same" in capsys.readouterr().out
    forged = replace(decisions[7], scale=replace(decisions[7].scale, target=9))
    DecisionLog(path, RULES).write(forged)
    assert main(["replay", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "decision 41 at 35: 9 (" in shown
    assert "1 decisions differ" in shown


def test_other_rules_are_tried_on_the_same_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "autoscaler.jsonl"
    written(path)
    assert main(["replay", str(path), "--policy", "max_replicas=2", "--policy", "keep_s=5"]) == 0
    recorded, changed = capsys.readouterr().out.splitlines()[-2:]
    assert recorded.startswith("recorded")
    assert changed.split()[:4] == ["changed", "1", changed.split()[2], "2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("no json\n", "line 1 is not JSON; was the file cut off?"),
        ("[1]\n", "line 1 is not an object"),
        ('{"fleet": {}}\n', "its first line holds no rules"),
        ('{"format": 1, "rules": {}}\n', "line 1: rules.prompt_tokens_per_s: Field required"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    path = tmp_path / "autoscaler.jsonl"
    path.write_text(text)
    assert main(["replay", str(path)]) == 1
    assert said in capsys.readouterr().err
    assert last_decision(path) is None


def test_a_log_of_another_version_or_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "autoscaler.jsonl"
    written(path, 3)
    whole = path.read_text()
    path.write_text(whole[:-30])
    with pytest.raises(ConfigInvalid, match="line 4 is not JSON"):
        list(read_decisions(path))
    head = json.loads(whole.splitlines()[0]) | {"format": 2}
    path.write_text(json.dumps(head) + "\n")
    with pytest.raises(ConfigInvalid, match="has format 2, this version reads 1"):
        list(read_decisions(path))


def test_an_unknown_rule_and_a_missing_file_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "autoscaler.jsonl"
    written(path, 3)
    assert main(["replay", str(path), "--policy", "speed=3"]) == 1
    assert "there is no such rule" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err
