"""Which pictures do decisions look at, and what do they answer? Read this file first.

Pictures are frozen; a policy takes one and returns a decision. The same policy objects run in
production and in simulation: they have no clock, no dice, no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

NOTHING_CACHED: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """One alive node. `gpus_free` counts what no actor or placement group holds now."""

    node_id: str
    address: str
    cpus_total: float
    cpus_free: float
    gpus_total: float
    gpus_free: float
    labels: Mapping[str, str] = field(default_factory=dict)

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether it carries all of these."""
        return labels.items() <= self.labels.items()


@dataclass(frozen=True, slots=True)
class Topology:
    """The cluster now."""

    nodes: tuple[NodeSnapshot, ...]

    @property
    def gpus_free(self) -> float:
        """Free GPUs of all nodes together."""
        return sum(node.gpus_free for node in self.nodes)


@dataclass(frozen=True, slots=True)
class Bundles:
    """What one replica asks of Ray: bundle 0 is its own process, the others hold one rank each."""

    bundles: tuple[Mapping[str, float], ...]
    strategy: str


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one engine step computes.

    `prefill_pairs` counts pairs of query and key of the prompts' chunks: `sum(chunk*(past + chunk/2))`.
    `decode_context_tokens` are the KV tokens that the decoding sequences read.
    """

    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    decodes: int = 0
    decode_context_tokens: int = 0


class StepCost(Protocol):
    """What a replica of one model, plan and GPU costs: the cost model, or a test's own."""

    kv_tokens: int

    def step_s(self, shape: StepShape) -> float:
        """Seconds of one step."""

    def speed(self) -> StepSpeed:
        """The straight line through typical steps, for policies."""


@dataclass(frozen=True, slots=True)
class StepSpeed:
    """How long one engine step takes, as a straight line; the cost model or a fit of measured steps gives it.

    `fixed_s + prefill_tokens*prefill_token_s + running*sequence_s + context_tokens*context_token_s`,
    where `context_tokens` are those of the KV cache that the running sequences read.
    """

    fixed_s: float
    prefill_token_s: float
    sequence_s: float
    context_token_s: float
    max_step_tokens: int

    def step_s(self, prefill_tokens: float, running: float, context_tokens: float) -> float:
        """One step."""
        return (
            self.fixed_s
            + prefill_tokens * self.prefill_token_s
            + running * self.sequence_s
            + context_tokens * self.context_token_s
        )


@dataclass(frozen=True, slots=True)
class ReplicaSnapshot:
    """One replica as an ingress sees it. `outstanding_tokens` is this ingress's own unanswered work:
    prompt plus output limit of every sequence it gave to the replica, known before the replica tells.

    `prefill_tokens` are prompt tokens not in its cache that are still to be computed before a new request's, by
    the replica's report or by what this ingress sent, whichever is more. `age_s` is how old the report is.
    `recent_tokens` are prompt and output of all that this ingress sent it, the older ones fading (half in 5 minutes).
    """

    replica_id: str
    ready: bool
    draining: bool
    running: int
    waiting: int
    waiting_prompt_tokens: int
    kv_tokens_used: int
    kv_tokens_total: int
    outstanding_tokens: int
    prefill_tokens: int = 0
    age_s: float = 0.0
    speed: StepSpeed | None = None
    recent_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class RequestFeatures:
    """What routing may know of a request.

    `block_hashes` chain over the whole routing blocks of the prompt, first block first; the chain starts from the
    tenant's salt, so that tenants never share one.
    """

    prompt_tokens: int
    max_output_tokens: int
    affinity_key: str = ""
    block_hashes: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """The chosen replica, or None with the reason why there is none.

    `cached_tokens` of the prompt are thought to be in its cache; `ttft_s` is the prediction, None without one.
    """

    replica_id: str | None
    reason: str
    cached_tokens: int = 0
    ttft_s: float | None = None


class RouterPolicy(Protocol):
    """Decides which replica gets a request."""

    def route(
        self,
        request: RequestFeatures,
        replicas: Sequence[ReplicaSnapshot],
        cached_tokens: Mapping[str, int] = NOTHING_CACHED,
    ) -> Route:
        """Looks at every known replica, also those that are not ready.

        `cached_tokens` of the prompt are in the cache of that replica; one that is not named has none.
        """


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """One request that waits to be admitted. `expected_output_tokens` is a forecast, at most the limit.

    `deadline_in_s` and `waited_s` are relative to the picture; no deadline is infinity. Priority 0 is the highest.
    Each of its `sequences` (the choices of one prompt) needs the same room.
    """

    request_id: str
    priority: int
    prompt_tokens: int
    max_output_tokens: int
    expected_output_tokens: int
    waited_s: float = 0.0
    deadline_in_s: float = math.inf
    sequences: int = 1

    @property
    def kv_tokens(self) -> int:
        """What it will hold at its end, by the forecast."""
        return self.sequences * (self.prompt_tokens + self.expected_output_tokens)


@dataclass(frozen=True, slots=True)
class TenantQueue:
    """One tenant's requests that wait, first come first within a priority: the heads alone may enter.

    `served_tokens` is the tenant's virtual counter: weighted tokens of work it was given. `tail` is the newest of its
    lowest priority, the first to go if the queue is too long; `waiting_tokens` is the room that all of them need.
    """

    tenant: str
    weight: float
    served_tokens: float
    heads: tuple[QueuedRequest, ...]
    waiting: int
    tail: QueuedRequest | None = None
    waiting_tokens: int = 0


@dataclass(frozen=True, slots=True)
class AdmissionSnapshot:
    """What one ingress knows when it decides who enters: its share of the fleet's KV room, and who waits.

    `kv_tokens_free` is what this ingress may still give out (its lease), `prefill_tokens` the work ahead of a new
    request on the replica that would take it soonest. `starting_in_s` is when the first replica will be ready if
    none is; infinity if none is coming. With all of `kv_tokens_total` free, nothing of this ingress is inside.

    Beside the KV room, the engines run so many sequences (`sequences_free`) and compute prompts step by step
    (`prefill_tokens_free`: what may be sent ahead of their steps). Tenants whose counter is not below `level_tokens`
    have less room: the three that end in `_later`. `kv_tokens_replica` is the largest replica's whole
    cache, 0 if unknown; `replica_running` and `replica_context_tokens` are what one replica decodes now.
    `entered_tokens_per_s` is how fast room was given out while requests waited, 0 if unknown. `passed_tokens`: for each
    priority, the work of higher ones that entered before its waiting requests.
    """

    ready_replicas: int
    kv_tokens_free: int
    kv_tokens_total: int
    prefill_tokens: int
    speed: StepSpeed | None
    starting_in_s: float
    tenants: tuple[TenantQueue, ...]
    sequences_free: float = math.inf
    prefill_tokens_free: float = math.inf
    level_tokens: float = 0.0
    kv_tokens_later: float = math.inf
    sequences_later: float = math.inf
    prefill_tokens_later: float = math.inf
    kv_tokens_replica: int = 0
    replica_running: float = 0.0
    replica_context_tokens: float = 0.0
    entered_tokens_per_s: float = 0.0
    passed_tokens: tuple[float, ...] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Admitted:
    """This request enters now; its tenant's counter grows by `charge_tokens`."""

    request_id: str
    tenant: str
    charge_tokens: float


@dataclass(frozen=True, slots=True)
class Refused:
    """This request never enters; `retry_after_s` is infinite where another attempt would not either."""

    request_id: str
    tenant: str
    reason: str
    retry_after_s: float


class AdmissionPolicy(Protocol):
    """Decides who of those that wait enters next, and who need not wait any longer."""

    def decide(self, picture: AdmissionSnapshot) -> Admitted | Refused | None:
        """One decision at a time; None: all go on waiting. Whoever asks applies it and asks again."""


@dataclass(frozen=True, slots=True)
class DemandTick:
    """What arrived in one tick of a fleet, over all its ingresses, admitted or not."""

    seconds: float
    requests: float
    prompt_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """One model's replicas and demand, as the autoscaler sees them.

    `demand` is the recent past, oldest tick first; `backlog_s` is the predicted time to first token of a request
    that came now, 0 if it would start at once. `room` is how many more whole replicas the cluster could hold.
    """

    now_s: float
    ready: int
    starting: int
    draining: int
    room: int
    waiting_requests: float
    running_requests: float
    backlog_s: float
    demand: tuple[DemandTick, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """How many replicas there should be, and why; `reason` is one of few slugs, `detail` is for people."""

    target: int
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ScalerMemory:
    """What an autoscaler's next decision depends on besides the picture. Written to the log with it."""

    target: int = 0
    lower_since_s: float | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


class AutoscalerPolicy(Protocol):
    """Decides how many replicas a model has."""

    def decide(self, fleet: FleetSnapshot, memory: ScalerMemory) -> tuple[Scale, ScalerMemory]:
        """One decision per tick; equal arguments give equal answers."""
