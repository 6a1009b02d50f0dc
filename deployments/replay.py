"""Does the autoscaler still decide the same on the pictures of a log, and what would other rules have asked for?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from cluster.policy import ScalerMemory
from deployments.decision_log import Decision, read_decisions
from deployments.policies.autoscaler import ScalingRules, SloAutoscaler
from llama31.errors import ConfigInvalid

SHOWN_DIFFERENCES = 5
PROGRESS_EVERY = 20_000


@dataclass(slots=True)
class Course:
    """How a row of targets went."""

    targets: list[int] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, target: int, reason: str) -> None:
        """One decision more."""
        self.targets.append(target)
        self.reasons[reason] += 1

    def row(self, name: str) -> str:
        """For the summary."""
        targets = self.targets
        steps = [after - before for before, after in pairwise(targets) if after != before]
        turns = sum(before * after < 0 for before, after in pairwise(steps))
        mean = sum(targets) / len(targets)
        numbers = f"{min(targets):>5} {mean:>7.2f} {max(targets):>5} {len(steps):>8} {turns:>10}"
        return f"{name:<10} {numbers}   {', '.join(f'{reason} {n}' for reason, n in self.reasons.most_common(5))}"


def replay(path: Path, changed: Mapping[str, float], show: Callable[[str], None]) -> bool:
    """Shows a summary; whether all decisions were the same, which is not asked where rules are `changed`.

    Without changes each decision is made from the memory that the log holds, so that one difference causes no others;
    with changes the memory is the new rules' own, and the pictures stay those that were. Raises: ConfigInvalid.
    """
    recorded, asked = Course(), Course()
    memory = ScalerMemory()
    different, began_s, ended_s = 0, 0.0, 0.0
    for number, (rules, decision) in enumerate(read_decisions(path), 1):
        policy = SloAutoscaler(with_rules(rules, changed))
        scale, remembered = policy.decide(decision.fleet, memory if changed and number > 1 else decision.memory)
        memory = remembered
        recorded.add(decision.scale.target, decision.scale.reason)
        asked.add(scale.target, scale.reason)
        began_s, ended_s = began_s or decision.fleet.now_s, decision.fleet.now_s
        if not changed and (scale, remembered) != (decision.scale, decision.remembered):
            different += 1
            if different <= SHOWN_DIFFERENCES:
                show(_difference(number, decision, scale.target, scale.reason))
        if number % PROGRESS_EVERY == 0:
            show(f"{number} decisions ...")
    if not recorded.targets:
        raise ConfigInvalid(f"{path} holds no decision")
    show(f"{len(recorded.targets)} decisions in {(ended_s - began_s) / 3600:.2f} h")
    show(f"{'':<10} {'least':>5} {'mean':>7} {'most':>5} {'changes':>8} {'reversals':>10}   reasons")
    show(recorded.row("recorded"))
    show(asked.row("changed" if changed else "replayed"))
    if not changed:
        show("all decisions are the same" if not different else f"{different} decisions differ")
    return not different


def with_rules(rules: ScalingRules, changed: Mapping[str, float]) -> ScalingRules:
    """The rules with other values. Raises: ConfigInvalid for a name that there is not."""
    known = ScalingRules.__dataclass_fields__
    for name in changed:
        if name not in known:
            raise ConfigInvalid(f"--policy {name}: there is no such rule; there are {', '.join(known)}")
    values = {name: int(value) if name.endswith("_replicas") else value for name, value in changed.items()}
    return replace(rules, **values)  # type: ignore[arg-type]


def _difference(number: int, decision: Decision, target: int, reason: str) -> str:
    was = decision.scale
    return f"decision {number} at {decision.fleet.now_s:.0f}: {was.target} ({was.reason}), now {target} ({reason})"
