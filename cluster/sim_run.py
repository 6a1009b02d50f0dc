"""How long do many steps take whose duration grows by the same amount each time, and what gaps do they leave?"""

from __future__ import annotations

import math


class Run:
    """Steps of `first_s`, `first_s + growth_s`, ... from `start_s` on; `growth_s` is not negative."""

    __slots__ = ("first_s", "growth_s", "start_s", "steps")

    def __init__(self) -> None:
        self.start_s = 0.0
        self.steps = 0
        self.first_s = 0.0
        self.growth_s = 0.0

    def plan(self, start_s: float, steps: int, first_s: float, last_s: float) -> float:
        """Starts anew; when it ends."""
        self.start_s = start_s
        self.steps = steps
        self.first_s = first_s
        self.growth_s = max(0.0, last_s - first_s) / (steps - 1) if steps > 1 else 0.0
        return start_s + self.duration_s(steps)

    def duration_s(self, steps: int) -> float:
        """So many steps from its start."""
        return steps * self.first_s + self.growth_s * (steps * (steps - 1) / 2)

    def ended_by(self, now_s: float) -> int:
        """Whole steps that have ended by now."""
        spent_s = now_s - self.start_s
        half_s = self.growth_s / 2
        linear_s = self.first_s - half_s
        if half_s > 0:
            steps = int((math.sqrt(linear_s * linear_s + 4 * half_s * max(0.0, spent_s)) - linear_s) / (2 * half_s))
        else:
            steps = int(spent_s / self.first_s) if self.first_s > 0 else self.steps
        steps = min(max(steps, 0), self.steps)
        while steps < self.steps and self.duration_s(steps + 1) <= spent_s:
            steps += 1
        while steps > 0 and self.duration_s(steps) > spent_s:
            steps -= 1
        return steps

    def cut(self, now_s: float) -> float | None:
        """Ends with the step that is in progress: when that is, None if it is the last one anyway."""
        steps = self.ended_by(now_s)
        if not steps or self.start_s + self.duration_s(steps) < now_s:
            steps += 1
        if steps >= self.steps:
            return None
        self.steps = steps
        return self.start_s + self.duration_s(steps)


class GapCounts:
    """How many times between two tokens of a sequence lasted how long: a histogram of 1 % wide bins."""

    __slots__ = ("counts",)
    BIN = math.log(1.01)

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def add(self, gap_s: float, count: int) -> None:
        """So many gaps of this length."""
        place = math.ceil(math.log(gap_s) / self.BIN) if gap_s > 0 else -4000
        self.counts[place] = self.counts.get(place, 0) + count

    def add_run(self, run: Run, steps: int, sequences: int) -> None:
        """The first steps of a run, with a token of every sequence each."""
        done = 0
        while done < steps:
            gap_s = run.first_s + done * run.growth_s
            place = math.ceil(math.log(gap_s) / self.BIN) if gap_s > 0 else -4000
            inside = steps - done
            if run.growth_s > 0 and gap_s > 0:
                inside = min(inside, int((math.exp(place * self.BIN) - gap_s) / run.growth_s) + 1)
            self.counts[place] = self.counts.get(place, 0) + inside * sequences
            done += inside

    def percentile_s(self, share: float) -> float:
        """At most that long were so many of all gaps; NaN if there are none."""
        left = share * sum(self.counts.values())
        place = None
        for place in sorted(self.counts):
            left -= self.counts[place]
            if left <= 0:
                break
        return math.nan if place is None else math.exp((place - 0.5) * self.BIN)
