"""How do Serve's controller and our autoscaler meet? A policy class that the controller builds and asks.

The controller must not wait: a thread fetches the pictures, the decision itself is a computation. What the policy
remembers goes with the controller; a new one takes it from the log's last line.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from cluster.placement import place_replicas
from cluster.policy import DemandTick, FleetSnapshot, ScalerMemory, Topology
from cluster.ray_cluster import snapshot
from deployments.config import ServiceConfig, parse_config
from deployments.decision_log import LOG_NAME, Decision, DecisionLog, last_decision
from deployments.demand import DemandHistory, DemandReport
from deployments.directory import ANSWER_S, ReplicaRecord, Scaling, find_directory
from deployments.policies.autoscaler import SloAutoscaler
from llama31.errors import PlacementRefused

_LOG = logging.getLogger("llama31.autoscaler")

# Longer without a picture than so many ticks: the number of replicas stays.
STALE_TICKS = 6
MEMORY_AGE_S = 600.0
STARTING_PHASES = ("starting", "loading", "warming up")


def engine_count(config: ServiceConfig, run_directory: Path) -> dict[str, Any]:
    """Options of the engines' deployment: a fixed number of replicas, or our policy in Serve's controller."""
    scaling = config.autoscaling
    if scaling is None:
        return {"num_replicas": config.replicas}
    policy = {
        "policy_function": "deployments.autoscaler.ServeAutoscaler",
        "policy_kwargs": {"config": config.model_dump(mode="json"), "run_directory": str(run_directory)},
    }
    bounds = {
        "min_replicas": scaling.min_replicas,
        "max_replicas": scaling.max_replicas,
        "initial_replicas": config.first_replicas,
    }
    # The policy has patience of its own.
    delays = {"upscale_delay_s": 0.0, "downscale_delay_s": 0.0, "downscale_to_zero_delay_s": 0.0}
    return {"autoscaling_config": {**bounds, **delays, "policy": policy}}


@dataclass(frozen=True, slots=True)
class Sight:
    """What the thread saw last."""

    at_s: float
    records: tuple[ReplicaRecord, ...]
    reports: Mapping[str, DemandReport]
    room: int


class ServeAutoscaler:
    """Serve asks it many times a second; it decides once a tick."""

    def __init__(self, config: dict[str, Any], run_directory: str) -> None:
        self._config = parse_config(config, "autoscaling policy")
        scaling = self._config.autoscaling
        assert scaling is not None, "engine_count asks for this policy only with the section"
        self._scaling = scaling
        self._policy = SloAutoscaler(scaling.rules)
        path = Path(scaling.decision_log or Path(run_directory) / LOG_NAME)
        self._log = DecisionLog(path, scaling.rules)
        self._memory = remembered(last_decision(path), time.time())
        self._history = DemandHistory(scaling.measure_s)
        self._sight: Sight | None = None
        self._decided_s = 0.0
        self._look = ClusterLook(self._config)
        threading.Thread(
            target=_keep_looking, args=(weakref.ref(self), self._look, scaling.tick_s), daemon=True
        ).start()

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Serve's `AutoscalingContext` in, the number of replicas out."""
        sight, tick_s, present = self._sight, self._scaling.tick_s, int(context.target_num_replicas)
        now_s = time.time()
        if sight is None or now_s - sight.at_s > STALE_TICKS * tick_s or sight.at_s <= self._decided_s:
            return present, {}
        self._decided_s = sight.at_s
        return self._decide(sight, present), {}

    def see(self, sight: Sight) -> None:
        """The thread's newest picture."""
        self._sight = sight

    def _decide(self, sight: Sight, present: int) -> int:
        self._history.add(sight.at_s, sight.reports)
        fleet = fleet_snapshot(sight, present, self._history.ticks())
        memory = replace(self._memory or ScalerMemory(), target=present)
        scale, self._memory = self._policy.decide(fleet, memory)
        try:
            self._log.write(Decision(fleet, memory, scale, self._memory))
        except OSError as error:
            _LOG.warning("the decision log cannot be written: %s", error.strerror)
        if scale.target != present:
            _LOG.info("replicas %d -> %d: %s, %s", present, scale.target, scale.reason, scale.detail)
        self._look.tell(
            Scaling(
                model=self._config.model,
                target=scale.target,
                wanted=int(self._memory.numbers["wanted"]),
                reason=scale.reason,
                load=self._memory.numbers["load"],
                backlog_s=fleet.backlog_s,
            )
        )
        return scale.target


class ClusterLook:
    """Looks at the joined cluster; may block."""

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self._directory: ActorHandle[Any] | None = None

    def __call__(self) -> Sight:
        """Raises: whatever keeps Ray or the directory from answering."""
        # Ray would start a cluster of its own for who asks too early.
        self._directory = find_directory() if ray.is_initialized() else None
        if self._directory is None:
            raise LookupError("there is no replica directory")
        records, reports = ray.get(self._directory.demand.remote(), timeout=ANSWER_S)
        return Sight(time.time(), records, reports, self._room())

    def tell(self, scaling: Scaling) -> None:
        """Without waiting, through the handle of the last look."""
        if self._directory is not None:
            self._directory.tell_scaling.remote(scaling)

    def _room(self) -> int:
        scaling = self._config.autoscaling
        most = scaling.max_replicas if scaling else 0
        return most if scaling and scaling.cluster_grows else room(snapshot(), self._config, most)


def fleet_snapshot(sight: Sight, present: int, demand: tuple[DemandTick, ...]) -> FleetSnapshot:
    """The policy's picture. A replica that Serve wants and that did not announce itself yet is starting."""
    phases = [record.phase for record in sight.records]
    ready = phases.count("ready")
    held = sum(report.held for report in sight.reports.values())
    return FleetSnapshot(
        now_s=sight.at_s,
        ready=ready,
        starting=max(sum(phase in STARTING_PHASES for phase in phases), present - ready, 0),
        draining=phases.count("draining"),
        room=sight.room,
        waiting_requests=held,
        running_requests=sum(report.in_flight for report in sight.reports.values()) - held,
        backlog_s=max((report.backlog_s for report in sight.reports.values()), default=0.0),
        demand=demand,
    )


def remembered(last: Decision | None, now_s: float) -> ScalerMemory | None:
    """What a lost controller remembered, unless the demand may be another one by now."""
    return last.remembered if last and 0 <= now_s - last.fleet.now_s < MEMORY_AGE_S else None


def room(topology: Topology, config: ServiceConfig, most: int) -> int:
    """How many more whole replicas the cluster holds, counted to `most`."""
    engine = config.engine
    if engine.kind == "scripted":
        return min(most, sum(int(node.cpus_free / engine.replica_cpus) for node in topology.nodes))
    for replicas in range(1, most + 1):
        try:
            place_replicas(topology, config.parallel_plan, replicas, engine.replica_cpus, engine.rank_cpus)
        except PlacementRefused:
            return replicas - 1
    return most


def _keep_looking(owner: weakref.ref[ServeAutoscaler], look: Callable[[], Sight], tick_s: float) -> None:
    """Ends with the policy object, which Serve replaces at every deploy."""
    while True:
        began_s = time.monotonic()
        try:
            sight = look()
        except Exception as error:  # whatever keeps Ray from answering: the last picture grows old
            _LOG.warning("the autoscaler sees nothing: %s", type(error).__name__)
        else:
            policy = owner()
            if policy is None:
                return
            policy.see(sight)
            del policy
        time.sleep(max(0.0, tick_s - (time.monotonic() - began_s)))
