"""How does a fleet fare under many scaling rules at once? A fluid in ticks of 5 s, one column for each rule.

Work arrives at a piecewise constant rate and queues; what is not served is carried on. A request is late when the
queue in front of it, over the ready replicas, is longer than the SLO leaves. In one order all is served first come,
first served; in the other, as in admission, what can no longer be in time waits behind what still can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from bench.demand import STEP_S, STEPS_A_DAY, Rates
from deployments.policies.late_line import LATE_SHARE

TICK_S = 5
TICKS_A_DECISION = 2
TICKS_A_STEP = STEP_S // TICK_S
Column = npt.NDArray[np.float64]
Order = Literal["first come", "late yield"]


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
    """Of one rule: share of requests in time, replica-hours from start to end, changes of direction a day.

    `late_wait_s` is the mean wait of work that came late, `left_share` what of all work was never served.
    """

    label: str
    attainment: float
    replica_hours: float
    reversals_a_day: float
    late_wait_s: float
    left_share: float


def run(
    rules: Sequence[FluidRule], load: Rates, lead_s: float, slack_s: float, room: int, order: Order = "first come"
) -> list[Outcome]:
    """All rules on one demand. `slack_s` is what the SLO leaves for waiting, `room` the most replicas there can be."""
    labels = [label for rule in rules for label in rule.labels]
    edges = np.cumsum([0, *(len(rule.labels) for rule in rules)])
    cuts = list(zip(rules, edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    fleet = _Fleet(len(labels), load[0], round(lead_s / TICK_S))
    serve = fleet.serve_in_time_first if order == "late yield" else fleet.serve
    for tick in range(len(load) * TICKS_A_STEP):
        if tick % TICKS_A_DECISION == 0:
            # A tick's arrivals are known when it is over.
            seen = float(load[max(0, tick - 1) // TICKS_A_STEP])
            for rule, low, high in cuts:
                state = fleet.ready[low:high], fleet.starting[low:high], fleet.backlog[low:high]
                fleet.wanted[low:high] = rule.targets(FluidPicture(tick * TICK_S, seen, *state, room))
            fleet.scale(np.clip(fleet.wanted, 1, room), tick)
        fleet.make_ready(tick)
        serve(float(load[tick // TICKS_A_STEP]), slack_s)
    days = len(load) / STEPS_A_DAY
    return [
        Outcome(
            label,
            1 - fleet.late[i] / fleet.arrived,
            fleet.replica_s[i] / 3600,
            fleet.reversals[i] / days,
            fleet.late_waited[i] / max(fleet.late[i], 1e-9),
            fleet.backlog[i] / fleet.arrived,
        )
        for i, label in enumerate(labels)
    ]


class _Fleet:
    """Starts that become ready one lead time later; the youngest go first when there are too many."""

    def __init__(self, columns: int, load: float, lead_ticks: int) -> None:
        self.ready = np.full(columns, np.ceil(load * 1.2))
        self.starting = np.zeros(columns)
        self.backlog = np.zeros(columns)
        self.wanted = np.zeros(columns)
        self.late, self.replica_s, self.reversals, self.late_waited = (np.zeros(columns) for _ in range(4))
        self.arrived = 0.0
        self._late_backlog = np.zeros(columns)
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
        is_late = waits_s > slack_s
        self.late += np.where(is_late, load * TICK_S, 0)
        self.late_waited += np.where(is_late, load * TICK_S * waits_s, 0)
        self._count(load)

    def serve_in_time_first(self, load: float, slack_s: float) -> None:
        """What cannot be in time any more goes behind, and has at least its share of the work until it is done."""
        can_do = self.ready * TICK_S
        for_late = np.minimum(self._late_backlog, LATE_SHARE * can_do)
        in_time = self.backlog - self._late_backlog + load * TICK_S
        served = np.minimum(in_time, can_do - for_late)
        waits = in_time - served
        kept = np.minimum(waits, slack_s * (can_do - for_late) / TICK_S)
        before = self._late_backlog
        self._late_backlog = before - np.minimum(before, can_do - served) + (waits - kept)
        self.late += waits - kept
        self.late_waited += (before + self._late_backlog) / 2 * TICK_S
        self.backlog = kept + self._late_backlog
        self._count(load)

    def _count(self, load: float) -> None:
        self.arrived += load * TICK_S
        self.replica_s += (self.ready + self.starting) * TICK_S
