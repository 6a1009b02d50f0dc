"""Which rules does our autoscaler stand beside? Each holds some columns of the fluid fleet, one for each setting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ray.serve.autoscaling_policy import _apply_delay_logic, _apply_scaling_factors
from ray.serve.config import AutoscalingConfig

from bench.fluid_fleet import Column, FluidPicture
from cluster.policy import DemandTick, FleetSnapshot, ScalerMemory
from deployments.policies.autoscaler import ScalingRules, SloAutoscaler

# How long a request of the modelled kind is in its replica: with its load this gives the requests in flight.
RESIDENCE_S = 10.0
_TOKENS_PER_S = 1000.0
# Of a replica, for one request.
_REQUEST_S = 0.1


class Ours:
    """The production policy itself, one object and one memory for each setting."""

    def __init__(self, rules: Sequence[ScalingRules]) -> None:
        self.labels = [f"ours, late_price {rule.late_price:g}" for rule in rules]
        self._policies = [SloAutoscaler(rule) for rule in rules]
        self._memories = [ScalerMemory() for _ in rules]

    def targets(self, picture: FluidPicture) -> Column:
        """Asks each policy with the picture that production would give it."""
        return np.array([self._decide(picture, column) for column in range(len(self._policies))], float)

    def _decide(self, picture: FluidPicture, column: int) -> int:
        ready, starting = int(picture.ready[column]), int(picture.starting[column])
        # An ingress gives the engines what they take at once: where the late yield, it holds the queue.
        yields = self._policies[column].rules.late_yield
        queue = float(picture.backlog[column])
        fleet = FleetSnapshot(
            now_s=picture.now_s,
            ready=ready,
            starting=starting,
            draining=0,
            room=picture.room - ready - starting,
            waiting_requests=queue / _REQUEST_S if yields else 0.0,
            running_requests=1.0,
            backlog_s=0.0 if yields else queue / ready,
            demand=(DemandTick(1.0, picture.load / _REQUEST_S, picture.load * _TOKENS_PER_S, 0.0),),
        )
        decision, self._memories[column] = self._policies[column].decide(fleet, self._memories[column])
        return decision.target


def our_rules(slo_s: float, lead_s: float, room: int, late_price: float, *, late_yield: bool) -> ScalingRules:
    """The shipped constants."""
    return ScalingRules(
        prompt_tokens_per_s=_TOKENS_PER_S,
        output_tokens_per_s=_TOKENS_PER_S,
        slo_ttft_s=slo_s,
        lead_s=lead_s,
        min_replicas=1,
        max_replicas=room,
        late_price=late_price,
        late_yield=late_yield,
    )


class LastRate:
    """The rate of the last tick, and a share more."""

    def __init__(self, shares: Sequence[float]) -> None:
        self.labels = [f"last rate x {1 + share:.3f}" for share in shares]
        self._factors = 1 + np.array(shares)

    def targets(self, picture: FluidPicture) -> Column:
        """No memory."""
        return np.ceil(picture.load * self._factors - 1e-9)


class StaticPeak:
    """As many as the peak needs, always."""

    labels = ("static peak",)

    def __init__(self, peak: int) -> None:
        self._peak = np.array([peak], float)

    def targets(self, picture: FluidPicture) -> Column:
        """The same every time."""
        return self._peak


class Hpa:
    """Kubernetes' HorizontalPodAutoscaler on the requests in flight of a ready replica, with its defaults.

    10 % tolerance, up by 100 % or 4 at most, down to the highest need of the last 300 s; looks every 20 s, as
    its 15 s are not whole decisions here.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self.labels = [f"HPA at {share:.2f}" for share in shares]
        self._shares = np.array(shares)
        self._needs: list[Column] = []
        self._last: Column | None = None

    def targets(self, picture: FluidPicture) -> Column:
        """Between two looks the last answer stands."""
        if self._last is not None and picture.now_s % 20:
            return self._last
        present = picture.ready + picture.starting
        used = in_flight(picture) / RESIDENCE_S / picture.ready
        ratio = used / self._shares
        need = np.where(np.abs(ratio - 1) <= 0.1, present, np.ceil(picture.ready * ratio - 1e-9))
        self._needs = [*self._needs, need][-15:]
        down = np.minimum(present, np.max(self._needs, axis=0))
        up = np.minimum(need, np.maximum(2 * present, present + 4))
        self._last = np.where(need > present, up, np.maximum(need, down))
        return self._last


class ServeDefault:
    """Ray Serve's own rule, by its own functions: requests in flight, mean of 30 s, up after 30 s, down after 600 s."""

    def __init__(self, shares: Sequence[float], room: int) -> None:
        self.labels = [f"Serve at {share:.2f}" for share in shares]
        self._shares = shares
        self._config = AutoscalingConfig(min_replicas=1, max_replicas=room)
        self._states: list[dict[str, object]] = [{} for _ in shares]
        self._seen: list[Column] = []
        self._targets = [1.0] * len(shares)

    def targets(self, picture: FluidPicture) -> Column:
        """The mean of the window over what one replica should have in flight."""
        self._seen = [*self._seen, in_flight(picture)][-3:]
        mean = sum(self._seen) / len(self._seen)
        for column, share in enumerate(self._shares):
            ready, present = int(picture.ready[column]), int(picture.ready[column] + picture.starting[column])
            desired = _apply_scaling_factors(float(mean[column]) / (share * RESIDENCE_S), ready, self._config)
            self._targets[column], self._states[column] = _apply_delay_logic(
                max(0, desired), present, self._config, self._states[column], _now=picture.now_s
            )
        return np.array(self._targets, float)


def in_flight(picture: FluidPicture) -> Column:
    """Requests in replicas and queues, counted in a replica's work of one second."""
    in_replicas: Column = np.minimum(picture.load, picture.ready) * RESIDENCE_S
    return in_replicas + picture.backlog
