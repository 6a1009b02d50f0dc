"""What does an autoscaler see of a simulated fleet?"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from cluster.policy import DemandTick, FleetSnapshot
from cluster.sim_fleet import SimFleet
from cluster.sim_ingress import Ingress, Member
from cluster.sim_replica import Replica
from cluster.workload import Request


class Demand:
    """What arrived, in ticks. Output tokens count as they will be: this forecast is perfect."""

    def __init__(self) -> None:
        self._requests = self._prompt_tokens = self._output_tokens = 0
        self._ticks: deque[DemandTick] = deque()

    def arrived(self, request: Request) -> None:
        """One more in this tick."""
        self._requests += 1
        self._prompt_tokens += request.prompt_tokens
        self._output_tokens += request.output_tokens

    def tick(self, seconds: float, keep: int) -> tuple[DemandTick, ...]:
        """Ends a tick: the latest ones, the oldest first."""
        self._ticks.append(DemandTick(seconds, self._requests, self._prompt_tokens, self._output_tokens))
        self._requests = self._prompt_tokens = self._output_tokens = 0
        while len(self._ticks) > keep:
            self._ticks.popleft()
        return tuple(self._ticks)


def fleet_picture(
    now_s: float,
    members: Sequence[Member],
    starting: Mapping[Replica, float],
    ingresses: Sequence[Ingress],
    fleet: SimFleet,
    ticks: tuple[DemandTick, ...],
) -> FleetSnapshot:
    """The fleet now; `starting` says when each of those will be ready."""
    reachable = [member for member in members if member.is_reachable]
    serving = [member for member in reachable if not member.is_draining]
    held = sum(ingress.waiting for ingress in ingresses)
    backlog_s = min((m.replica.prefill_left for m in serving), default=0) * fleet.cost.speed().prefill_token_s
    if not serving and held:
        backlog_s = min(starting.values(), default=now_s + fleet.start_s) - now_s
    max_replicas = fleet.scaling.max_replicas if fleet.scaling is not None else fleet.replicas
    return FleetSnapshot(
        now_s=now_s,
        ready=len(serving),
        starting=len(starting),
        draining=len(reachable) - len(serving),
        room=max(0, max_replicas - len(reachable) - len(starting)),
        waiting_requests=held,
        running_requests=sum(member.state.running + member.state.waiting for member in reachable),
        backlog_s=backlog_s,
        demand=ticks,
    )
