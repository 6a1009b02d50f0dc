"""Which fleet is simulated: its replicas, who looks on, what goes wrong, who scales it?"""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.policy import AutoscalerPolicy, StepCost
from llama31.errors import ConfigInvalid


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Limits of an engine; the defaults are those of vLLM's server on GPUs of 80 GB and more."""

    max_step_tokens: int = 8192
    max_sequences: int = 1024
    block_tokens: int = 16

    def __post_init__(self) -> None:
        if self.max_sequences < 1 or self.max_step_tokens < self.max_sequences or self.block_tokens < 1:
            raise ConfigInvalid("an engine needs at least 1 sequence, and a step room for a token of each of them")


@dataclass(frozen=True, slots=True)
class View:
    """What the ingresses see: each replica reports every `heartbeat_s` while it works; 0: they see all as it is.

    The router is shown `candidates` replicas drawn by chance for each request; 0: all.
    """

    ingresses: int = 1
    heartbeat_s: float = 0.5
    candidates: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """The replica that is `place`-th then (counted from 0 over those alive) dies at `at_s` of the first run.

    Its ingresses notice after `notice_s` and send its requests elsewhere; a new replica is started at once.
    """

    at_s: float
    place: int = 0
    notice_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Scaling:
    """An autoscaler, asked every `tick_s`; it is shown the demand of the last `history_ticks`."""

    policy: AutoscalerPolicy
    max_replicas: int
    tick_s: float = 5.0
    history_ticks: int = 720


@dataclass(frozen=True, slots=True)
class SimFleet:
    """Replicas of one model: what a step costs, the engine's limits, who looks on, what goes wrong.

    A replica is ready `start_s` after it was asked for; those of the beginning are ready at 0.
    """

    cost: StepCost
    replicas: int
    engine: EngineSettings = field(default_factory=EngineSettings)
    view: View = field(default_factory=View)
    gpus_per_replica: int = 1
    start_s: float = 60.0
    failures: tuple[Failure, ...] = ()
    scaling: Scaling | None = None
