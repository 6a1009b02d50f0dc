"""How many replicas should there be? Enough for the demand and its usual jumps one start ahead; pure.

Demand is counted in replicas: work per second over what one replica does within the SLO. A further replica is kept
where the late requests that it would prevent are dearer than its time (docs/autoscaling.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from cluster.policy import FleetSnapshot, Scale, ScalerMemory

Reason = Literal["steady", "demand", "backlog", "wake", "keep", "lower", "idle", "no_room", "at_max", "at_min"]
REASONS: tuple[Reason, ...] = get_args(Reason)

# Chosen on the first weeks of ServeGen's m-large and m-small; what else was tried: docs/autoscaling.md.
JUMP_S = 600.0
SPREAD_MEMORY_S = 3600.0
FIRST_SPREAD = 0.1
LARGEST_JUMP = 0.7
# Lateness that is drained within this time after the next start, where everybody waits for it.
DRAIN_S = 5.0
# The same where the late yield: nobody else waits for them.
YIELDED_DRAIN_S = 60.0
# Of the SLO: a backlog below it needs no replica of its own.
TOLERATED_SHARE = 0.4
# Below this many replicas' worth of work, ratios say nothing.
SMALLEST_LOAD = 0.05
PAST_EVERY_S = 60.0
_PAST = int(JUMP_S / PAST_EVERY_S)


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """What the operator says. The two rates are those of one replica within the SLO, if it did nothing else.

    `late_price` is how many times its own replica time a late request may cost to prevent. `late_yield`: requests that
    cannot be on time wait behind the others (late_line.py), so that only as many are late as there were too many.
    `keep_s` is how long fewer replicas must be enough before some go, `idle_s` the same for the last one.
    """

    prompt_tokens_per_s: float
    output_tokens_per_s: float
    slo_ttft_s: float
    lead_s: float
    min_replicas: int
    max_replicas: int
    late_price: float = 16.0
    late_yield: bool = True
    keep_s: float = 60.0
    idle_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Need:
    """How many replicas each concern asks for, before any bound."""

    load: float
    for_demand: int
    for_backlog: int

    @property
    def replicas(self) -> int:
        """All of them together."""
        return max(self.for_demand, self.for_backlog)


class SloAutoscaler:
    """Forecast, backlog, bounds, and no haste on the way down."""

    def __init__(self, rules: ScalingRules) -> None:
        self.rules = rules

    def decide(self, fleet: FleetSnapshot, memory: ScalerMemory) -> tuple[Scale, ScalerMemory]:
        """One decision per tick; equal arguments give equal answers."""
        load = self.load(fleet)
        known = memory.numbers
        numbers = _remembered(load, fleet.now_s, known) if fleet.demand else {"spread": FIRST_SPREAD, **known}
        need = self.need(fleet, load, numbers["spread"])
        present = memory.target or fleet.ready + fleet.starting
        rules, detail = self.rules, f"{load:.2f} replicas of work, usual jump {numbers['spread']:.0%}"
        target, reason, ceiling = need.replicas, _why_more(need, fleet), _ceiling(fleet, rules)
        if target > ceiling:
            target, reason = ceiling, "at_max" if ceiling == rules.max_replicas else "no_room"
        if target < rules.min_replicas:
            target, reason = min(rules.min_replicas, ceiling), "at_min"
        lower_since_s: float | None = None
        if target < min(present, ceiling):
            target, lower_since_s, reason = self._lower(target, min(present, ceiling), fleet.now_s, memory, numbers)
        elif target == present and reason in ("demand", "backlog", "at_min"):
            reason = "steady"
        numbers |= {"wanted": need.replicas, "load": load, "backlog_s": fleet.backlog_s}
        return Scale(target, reason, detail), ScalerMemory(target, lower_since_s, numbers)

    def load(self, fleet: FleetSnapshot) -> float:
        """The arriving work, in replicas."""
        seconds = sum(tick.seconds for tick in fleet.demand)
        if seconds <= 0:
            return 0.0
        prompt = sum(tick.prompt_tokens for tick in fleet.demand)
        output = sum(tick.output_tokens for tick in fleet.demand)
        return (prompt / self.rules.prompt_tokens_per_s + output / self.rules.output_tokens_per_s) / seconds

    def need(self, fleet: FleetSnapshot, load: float, spread: float) -> Need:
        """Without bounds."""
        needed = replicas_where_late_yield if self.rules.late_yield else replicas_for
        for_demand = needed(load, spread, self._late_share() * self.rules.late_price, self.rules.max_replicas)
        if fleet.waiting_requests > 0 or fleet.running_requests > 0:
            for_demand = max(1, for_demand)
        return Need(load, for_demand, self._for_backlog(fleet, load))

    def _late_share(self) -> float:
        """Of the time between jumps, what passes until a start has caught up with one."""
        return min(1.0, (self.rules.lead_s + 3 * DRAIN_S) / JUMP_S)

    def _for_backlog(self, fleet: FleetSnapshot, load: float) -> int:
        """Enough to drain, soon after the next start, what will have queued up by then; at most twice the load."""
        tolerated = TOLERATED_SHARE * self.rules.slo_ttft_s * fleet.ready
        queued, drain_s = fleet.backlog_s * fleet.ready, YIELDED_DRAIN_S
        if not self.rules.late_yield:
            until_ready_s, drain_s = self.rules.lead_s / (2 if fleet.starting else 1), DRAIN_S
            queued += max(0.0, load - fleet.ready) * until_ready_s
        arrived = sum(tick.requests for tick in fleet.demand)
        if arrived > 0:
            each = load * sum(tick.seconds for tick in fleet.demand) / arrived
            queued += fleet.waiting_requests * each
        if not fleet.ready or queued <= tolerated:
            return 0
        return math.ceil(min(2 * load + 1, load + (queued - tolerated) / drain_s))

    def _lower(
        self, target: int, present: int, now_s: float, memory: ScalerMemory, numbers: dict[str, float]
    ) -> tuple[int, float | None, Reason]:
        """Fewer only once the highest need of a while allows it; the last replica goes after a longer while."""
        since_s = memory.lower_since_s
        if since_s is None:
            numbers["highest"] = target
            return present, now_s, "keep"
        highest = max(target, int(memory.numbers.get("highest", target)))
        numbers["highest"] = highest
        calm_s = now_s - since_s
        if calm_s < self.rules.keep_s:
            return present, since_s, "keep"
        if highest > 0:
            numbers["highest"] = target
            return min(present, highest), now_s, "lower" if highest < present else "keep"
        if calm_s >= self.rules.idle_s:
            return 0, None, "idle"
        return 1, since_s, "keep" if present == 1 else "lower"


def replicas_for(load: float, spread: float, price: float, most: int) -> int:
    """The fewest for the load, and one more as long as it prevents lateness that is dearer than itself.

    The logarithm of the next jump is taken as Laplace-distributed with the scale `spread`. Never falls as `load` grows.
    """
    if load <= 0:
        return 0
    replicas = max(1, math.ceil(load - 1e-9))
    while replicas < most and price * load * (_above(replicas, load, spread) - _above(replicas + 1, load, spread)) > 1:
        replicas += 1
    return replicas


def replicas_where_late_yield(load: float, spread: float, price: float, most: int) -> int:
    """The fewest for the load, and one more as long as a jump needs it with a chance above one in `price`.

    There a replica that is missing makes its own work late and no more. Never falls as `load` grows.
    """
    if load <= 0:
        return 0
    replicas = max(1, math.ceil(load - 1e-9))
    while replicas < most and price * _above(replicas, load, spread) > 1:
        replicas += 1
    return replicas


def _above(replicas: int, load: float, spread: float) -> float:
    """How likely the load jumps above so many replicas, which hold it now."""
    return 0.5 * math.exp(-max(0.0, math.log(replicas / load)) / spread)


def _remembered(load: float, now_s: float, known: Mapping[str, float]) -> dict[str, float]:
    """Spread of the demand now, and its past minute by minute, for as long as a jump takes."""
    load = max(load, SMALLEST_LOAD)
    numbers = {key: value for key, value in known.items() if key.startswith("past_")}
    spread, then_s = known.get("spread", FIRST_SPREAD), known.get("now_s", now_s)
    passed_s = max(0.0, now_s - then_s)
    if "past_0" in known:
        jump = min(LARGEST_JUMP, abs(math.log(load / known[f"past_{_oldest(known)}"])))
        spread += min(1.0, passed_s / SPREAD_MEMORY_S) * (jump - spread)
    pushed_s = known.get("pushed_s", -math.inf)
    if now_s - pushed_s >= PAST_EVERY_S:
        kept = [known[f"past_{age}"] for age in range(_PAST) if f"past_{age}" in known]
        numbers = {f"past_{age}": value for age, value in enumerate([load, *kept][:_PAST])}
        pushed_s = now_s
    return numbers | {"spread": max(spread, 1e-3), "now_s": now_s, "pushed_s": pushed_s}


def _oldest(known: Mapping[str, float]) -> int:
    return max(age for age in range(_PAST) if f"past_{age}" in known)


def _ceiling(fleet: FleetSnapshot, rules: ScalingRules) -> int:
    return max(0, min(rules.max_replicas, fleet.ready + fleet.starting + max(0, fleet.room)))


def _why_more(need: Need, fleet: FleetSnapshot) -> Reason:
    if not fleet.ready + fleet.starting:
        return "wake" if need.replicas else "steady"
    return "backlog" if need.for_backlog > need.for_demand else "demand"
