"""How does a fleet fare under many scaling rules at once? A fluid in ticks of 5 s, one column for each rule.

Work arrives at a piecewise constant rate and queues first come, first served; what is not served is carried on. A
request is late when the queue in front of it, over the ready replicas, is longer than the SLO leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bench.demand import STEP_S, STEPS_A_DAY, Rates

TICK_S = 5
TICKS_A_DECISION = 2
TICKS_A_STEP = STEP_S // TICK_S
Column = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FluidPicture:
    """What every rule sees; loads and replicas of all columns. `load` is what arrived in the last tick."""

    now_s: float
    load: float
    ready: Column
    starting: Column
    backlog: Column
    room: int


class FluidRule(Protocol):
    """Some columns' scaling rules."""

    labels: Sequence[str]

    def targets(self, picture: FluidPicture) -> Column:
        """For its own columns, which the picture is cut to."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one rule: share of requests in time, replica-hours from start to end, changes of direction a day."""

    label: str
    attainment: float
    replica_hours: float
    reversals_a_day: float


def run(rules: Sequence[FluidRule], load: Rates, lead_s: float, slack_s: float, room: int) -> list[Outcome]:
    """All rules on one demand. `slack_s` is what the SLO leaves for waiting, `room` the most replicas there can be."""
    labels = [label for rule in rules for label in rule.labels]
    edges = np.cumsum([0, *(len(rule.labels) for rule in rules)])
    cuts = list(zip(rules, edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    fleet = _Fleet(len(labels), load[0], round(lead_s / TICK_S))
    for tick in range(len(load) * TICKS_A_STEP):
        if tick % TICKS_A_DECISION == 0:
            # A tick's arrivals are known when it is over.
            seen = float(load[max(0, tick - 1) // TICKS_A_STEP])
            for rule, low, high in cuts:
                state = fleet.ready[low:high], fleet.starting[low:high], fleet.backlog[low:high]
                fleet.wanted[low:high] = rule.targets(FluidPicture(tick * TICK_S, seen, *state, room))
            fleet.scale(np.clip(fleet.wanted, 1, room), tick)
        fleet.make_ready(tick)
        fleet.serve(float(load[tick // TICKS_A_STEP]), slack_s)
    days = len(load) / STEPS_A_DAY
    return [
        Outcome(label, 1 - fleet.late[i] / fleet.arrived, fleet.replica_s[i] / 3600, fleet.reversals[i] / days)
        for i, label in enumerate(labels)
    ]


class _Fleet:
    """Starts that become ready one lead time later; the youngest go first when there are too many."""

    def __init__(self, columns: int, load: float, lead_ticks: int) -> None:
        self.ready = np.full(columns, np.ceil(load * 1.2))
        self.starting = np.zeros(columns)
        self.backlog = np.zeros(columns)
        self.wanted = np.zeros(columns)
        self.late, self.replica_s, self.reversals = (np.zeros(columns) for _ in range(3))
        self.arrived = 0.0
        self._queue = np.zeros((lead_ticks, columns))
        self._direction = np.zeros(columns)
        self._new: Column | float = 0.0

    def scale(self, target: Column, tick: int) -> None:
        change = target - self.ready - self.starting
        if not change.any():
            return
        self.reversals += self._direction * change < 0
        self._direction = np.where(change != 0, np.sign(change), self._direction)
        surplus = np.maximum(0, -change)
        slots = len(self._queue)
        for age in range(1, slots):
            if not surplus.any():
                break
            slot = self._queue[(tick - age) % slots]
            taken = np.minimum(surplus, slot)
            slot -= taken
            self.starting -= taken
            surplus -= taken
        self.ready = self.ready - surplus
        started = np.maximum(0, change)
        self.starting = self.starting + started
        self._new = started

    def make_ready(self, tick: int) -> None:
        slot = self._queue[tick % len(self._queue)]
        self.starting = self.starting - slot
        self.ready = self.ready + slot
        slot[:] = self._new
        self._new = 0.0

    def serve(self, load: float, slack_s: float) -> None:
        before_s = self.backlog / self.ready
        self.backlog = np.maximum(0, self.backlog + (load - self.ready) * TICK_S)
        waits_s = (before_s + self.backlog / self.ready) / 2
        self.late += np.where(waits_s > slack_s, load * TICK_S, 0)
        self.arrived += load * TICK_S
        self.replica_s += (self.ready + self.starting) * TICK_S
