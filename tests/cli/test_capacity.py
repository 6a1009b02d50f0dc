"""Are the answers of docs/capacity.md those that the planner gives?"""

from __future__ import annotations

import pytest

from bench.capacity import PAGE, answer, questions

pytestmark = pytest.mark.cli

QUESTIONS = list(questions(PAGE.read_text(encoding="utf-8")))


def ranked(text: str) -> list[list[str]]:
    """Rank, model, dtypes, GPU, plan, replicas and GPUs of each line."""
    return [line.split()[:8] for line in text.splitlines() if line[:1].isdigit()]


@pytest.mark.parametrize(
    ("command", "told", "plot"), QUESTIONS, ids=[command.split()[1] for command, _, _ in QUESTIONS]
)
def test_the_page_tells_what_the_planner_says(command: str, told: str, plot: str) -> None:
    said = answer(command)
    assert ranked(said) == ranked(told), "run python -m bench.capacity --save"
    assert bool(plot) == bool(ranked(said))
    assert not plot or "<svg" in PAGE.with_name(f"{plot}.svg").read_text()
