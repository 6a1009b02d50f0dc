"""Which plan serves this workload within its SLO on the fewest GPUs, and why do the others not?

Memory and counts first, then what each replica sustains (`cluster/steady.py`), then a prediction of percentiles for
the cheapest that are left, in the order of the GPUs that they need at least: so the first that holds is the cheapest.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from cluster.hardware import NodeGroup
from cluster.layouts import KV_DTYPES, WEIGHTS, Layout, Rejected, all_layouts, kinds_of, specs_of, why_not
from cluster.policy import StepCost
from cluster.steady import Lengths, SteadyReplica
from cluster.throughput import OfflineLoad, run_offline
from llama31.errors import ConfigInvalid
from llama31.specs import ModelSpec

# Of a board's peak, what it draws without work: 140 of 700 W of an H100 SXM (docs/energy.md).
IDLE_SHARE = 0.2
# More replicas at once are tried where many are needed, so that few predictions settle it.
_GROWTH = 8
_LOWER_RATE = 0.9
_RATE_TRIES = 6
_CUTS = 2


@dataclass(frozen=True, slots=True)
class Slo:
    """What the given share of requests and of tokens must hold; infinity: nothing is asked."""

    ttft_s: float = math.inf
    itl_s: float = math.inf
    percentile: float = 0.99


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be served and on what. `lengths` are (prompt, output) tokens, all equally likely.

    Without a rate the hardware is to give as much as it can. `hours` is how long the rate lasts, for GPU-hours.
    """

    model: str
    hardware: tuple[NodeGroup, ...]
    context_tokens: int
    lengths: tuple[tuple[int, int], ...]
    rate_per_s: float | None = None
    slo: Slo = Slo()
    max_gpus: int | None = None
    max_gpu_hours: float | None = None
    hours: float = 24.0
    weights: tuple[str, ...] = ()
    kv_dtypes: tuple[str, ...] = KV_DTYPES
    memory_share: float = 0.9
    max_running: int = 1024
    step_tokens: tuple[int, ...] = (8192, 4096, 2048, 1024, 512, 256)
    top: int = 5
    max_predictions: int = 40

    @property
    def gpus_at_most(self) -> float:
        """By both budgets."""
        by_hours = math.inf if self.max_gpu_hours is None else self.max_gpu_hours / self.hours
        return min(by_hours, math.inf if self.max_gpus is None else self.max_gpus)


@dataclass(frozen=True, slots=True)
class Prediction:
    """How a fleet does at a rate. `goodput_per_s` counts requests within the SLO, `busy` is the share of time at work.

    `ttft_slo_s` and `itl_slo_s` are at the SLO's percentile.
    """

    ttft_p50_s: float
    ttft_p99_s: float
    ttft_slo_s: float
    itl_p50_s: float
    itl_p99_s: float
    itl_slo_s: float
    goodput_per_s: float
    output_tokens_s: float
    busy: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """So many replicas of a layout under a rate: what is to be predicted. Each sustains `replica_capacity_per_s`."""

    layout: Layout
    replica: SteadyReplica
    replicas: int
    rate_per_s: float
    replica_capacity_per_s: float

    @property
    def gpus(self) -> int:
        """Of all replicas."""
        return self.layout.gpus * self.replicas

    @property
    def capacity_per_s(self) -> float:
        """Of all replicas, without any SLO."""
        return self.replica_capacity_per_s * self.replicas

    @property
    def cost(self) -> tuple[int, int, float, str]:
        """Fewest GPUs first, then fewest stages (one more hop and thing to fail each), then most headroom."""
        return self.gpus, self.layout.plan.pp, -self.capacity_per_s, f"{self} of {self.layout.nodes}"

    def __str__(self) -> str:
        return f"{self.replicas} x {self.layout}, steps of {self.replica.max_step_tokens}"


class Predict(Protocol):
    """The simulator, or a test's own."""

    def __call__(self, fleet: Fleet, question: Question) -> Prediction:
        """How the fleet does."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan that holds, and what it gives. `offline_tokens_s` is with all requests there from the start."""

    fleet: Fleet
    offline_tokens_s: float
    prediction: Prediction
    hours: float

    @property
    def layout(self) -> Layout:
        """Of each replica."""
        return self.fleet.layout

    @property
    def gpus(self) -> int:
        """Of all replicas."""
        return self.fleet.gpus

    @property
    def gpu_hours(self) -> float:
        """Over the time that was asked about."""
        return self.gpus * self.hours

    @property
    def tokens_s_per_gpu(self) -> float:
        """Output tokens."""
        return self.prediction.output_tokens_s / self.gpus

    @property
    def joules_per_token(self) -> float:
        """Of the boards, per output token: peak power while at work, `IDLE_SHARE` of it otherwise."""
        watts = self.layout.nodes.gpu.tdp_watts * (IDLE_SHARE + (1 - IDLE_SHARE) * self.prediction.busy)
        return watts / self.tokens_s_per_gpu


@dataclass(frozen=True, slots=True)
class Answer:
    """Ranked plans, best first; the ways that fail, with their reasons; and those that cost more than the ranked,
    with the GPUs that they would need at least."""

    plans: tuple[Plan, ...]
    rejected: tuple[Rejected, ...]
    dearer: tuple[Fleet, ...]
    predictions: int


Progress = Callable[[str], None]
MakeCost = Callable[[Layout, Question], StepCost]


@dataclass(slots=True)
class _Search:
    """What is known so far."""

    question: Question
    predict: Predict
    progress: Progress
    found: list[Plan] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    predictions: int = 0

    def goes_on(self) -> bool:
        """Whether more is to be predicted."""
        return len(self.found) < self.question.top and self.predictions < self.question.max_predictions

    def predicted(self, fleet: Fleet) -> Prediction:
        self.predictions += 1
        self.progress(f"predicting {fleet} at {fleet.rate_per_s:.3g} requests/s")
        return self.predict(fleet, self.question)

    def keep(self, fleet: Fleet, prediction: Prediction) -> None:
        offline_tokens_s = _offline_tokens_s(fleet.replica) * fleet.replicas
        self.found.append(Plan(fleet, offline_tokens_s, prediction, self.question.hours))

    def at_most(self, layout: Layout) -> int:
        """Replicas within the hardware and the budgets."""
        gpus: float = min(self.question.gpus_at_most, layout.nodes.gpus)
        return min(layout.nodes.replicas_at_most(layout.plan), int(gpus // layout.gpus))


def find_plans(question: Question, make_cost: MakeCost, predict: Predict, progress: Progress) -> Answer:
    """The best plans for the question, and why the rest is not among them.

    Raises: ConfigInvalid for a question that no hardware could answer.
    """
    specs = _chosen_specs(question)
    check_question(question, specs)
    search = _Search(question, predict, progress)
    lengths = Lengths.of(question.lengths, question.slo.percentile)
    open_ways: list[Fleet] = []
    for layout in all_layouts(specs, kinds_of(question.hardware), question.memory_share, question.kv_dtypes):
        rejected = why_not(layout, question.context_tokens)
        if rejected is None:
            cost = make_cost(layout, question)
            running = _max_running(layout, lengths, question)
            whole = SteadyReplica(cost, lengths, running, max(question.step_tokens))
            entry = _first_fleet(search, layout, whole)
            if isinstance(entry, Rejected):
                rejected = entry
            else:
                open_ways.append(entry)
                others = (_first_fleet(search, layout, cut) for cut in _smaller_steps(whole, question))
                open_ways += [other for other in others if isinstance(other, Fleet)]
        if rejected is not None:
            search.rejected.append(rejected)
    progress(f"{len(open_ways)} of {len(open_ways) + len(search.rejected)} ways hold the model and the load")
    settle = _settle_offline if question.rate_per_s is None else _settle
    left = settle(search, open_ways)
    return Answer(tuple(sorted(search.found, key=_rank(question))), tuple(search.rejected), left, search.predictions)


def check_question(question: Question, specs: Sequence[ModelSpec]) -> None:
    """Raises: ConfigInvalid for what no plan could change."""
    context = max(spec.context_tokens for spec in specs)
    longest = max(prompt + output for prompt, output in question.lengths)
    if question.context_tokens > context:
        raise ConfigInvalid(f"context {question.context_tokens:,} is beyond {specs[0].name}'s {context:,} tokens")
    if longest > question.context_tokens:
        raise ConfigInvalid(
            f"the workload has requests of {longest:,} tokens, more than the context of {question.context_tokens:,}"
        )
    slo = question.slo
    if min(slo.ttft_s, slo.itl_s) <= 0 or not 0 < slo.percentile < 1:
        raise ConfigInvalid("an SLO needs times above 0 and a percentile between 0 and 100")
    if question.rate_per_s is not None and not 0 < question.rate_per_s < math.inf:
        raise ConfigInvalid("the rate must be above 0 requests/s")


def _chosen_specs(question: Question) -> tuple[ModelSpec, ...]:
    specs = specs_of(question.model)
    chosen = tuple(s for s in specs if not question.weights or WEIGHTS[s.quantization] in question.weights)
    if not chosen:
        known = ", ".join(WEIGHTS[spec.quantization] for spec in specs)
        raise ConfigInvalid(f"{question.model} has no weights in {' or '.join(question.weights)}, only in {known}")
    return chosen


def _max_running(layout: Layout, lengths: Lengths, question: Question) -> int:
    """A power of two that holds what the KV cache does, within the question's bound."""
    fits = max(1.0, layout.kv_tokens / lengths.held_tokens)
    return min(question.max_running, max(16, 1 << math.ceil(math.log2(fits))))


def _smaller_steps(replica: SteadyReplica, question: Question) -> Iterator[SteadyReplica]:
    """With the largest step that keeps a prompt's chunk within the SLO of the decodes beside it, and the next one."""
    left = _CUTS
    for tokens in sorted(question.step_tokens, reverse=True):
        # An engine takes no more sequences than a step has tokens.
        cut = replace(replica, max_step_tokens=tokens, max_running=min(tokens, replica.max_running))
        if left and (left < _CUTS or cut.prefill_s(tokens - 1, 1) <= question.slo.itl_s):
            left -= 1
            if tokens < replica.max_step_tokens and not math.isinf(question.slo.itl_s):
                yield cut


def _first_fleet(search: _Search, layout: Layout, replica: SteadyReplica) -> Fleet | Rejected:
    """The fewest replicas that could do, or why none could."""
    question, lengths = search.question, replica.lengths
    slo, rate = question.slo, question.rate_per_s
    if (alone_s := replica.decode_s(1)) > slo.itl_s:
        words = f"one sequence alone gets a token every {_ms(alone_s)} ms > {_ms(slo.itl_s)} ms"
        return Rejected(layout, "itl", alone_s, slo.itl_s, words)
    if (prefill_s := replica.prefill_s(lengths.longest_prompt_tokens)) > slo.ttft_s:
        words = (
            f"a prompt of {lengths.longest_prompt_tokens:,.0f} tokens (p{100 * slo.percentile:g}) takes "
            f"{_ms(prefill_s)} ms alone > {_ms(slo.ttft_s)} ms"
        )
        return Rejected(layout, "ttft", prefill_s, slo.ttft_s, words)
    capacity = replica.capacity_per_s()
    if capacity <= 0:
        words = f"KV room for {layout.kv_tokens:,} tokens < one request of {lengths.held_tokens:,.0f}"
        return Rejected(layout, "context", lengths.held_tokens, layout.kv_tokens, words)
    if (at_most := search.at_most(layout)) < 1:
        words = f"one replica needs {layout.gpus} GPUs, the budget gives {question.gpus_at_most:.4g}"
        return Rejected(layout, "budget", layout.gpus, question.gpus_at_most, words)
    if rate is None:
        return Fleet(layout, replica, at_most, capacity * at_most, capacity)
    replicas = max(1, math.ceil(rate / capacity))
    if replicas > at_most:
        words = (
            f"{rate:.4g} requests/s need {replicas} replicas of {layout.gpus} GPUs "
            f"({capacity:.3g} requests/s each), there is room for {at_most}"
        )
        return Rejected(layout, "capacity", replicas * layout.gpus, at_most * layout.gpus, words)
    return Fleet(layout, replica, replicas, rate, capacity)


def _settle(search: _Search, ways: list[Fleet]) -> tuple[Fleet, ...]:
    """Predicts the cheapest first, each with more replicas until it holds; returns what was left open."""
    question = search.question
    heap = [(fleet.cost, fleet) for fleet in ways]
    heapq.heapify(heap)
    while heap and search.goes_on():
        _, fleet = heapq.heappop(heap)
        if any(plan.layout == fleet.layout for plan in search.found):
            continue
        prediction = search.predicted(fleet)
        broken = _broken(fleet, prediction, question)
        if broken is None:
            search.keep(fleet, prediction)
            continue
        search.rejected.append(broken)
        if fleet.replicas < (at_most := search.at_most(fleet.layout)):
            more = fleet.replicas + max(1, fleet.replicas // _GROWTH)
            larger = replace(fleet, replicas=min(more, at_most))
            heapq.heappush(heap, (larger.cost, larger))
    return tuple(fleet for _, fleet in sorted(heap))


def _settle_offline(search: _Search, ways: list[Fleet]) -> tuple[Fleet, ...]:
    """Predicts those that give most, each at the highest rate at which it holds."""
    order = sorted(ways, key=lambda fleet: (-fleet.capacity_per_s, fleet.cost))
    while order and search.goes_on():
        fleet, *order = order
        if any(plan.layout == fleet.layout for plan in search.found):
            continue
        broken = None
        for tries in range(1, _RATE_TRIES + 1):
            slower = replace(fleet, rate_per_s=fleet.capacity_per_s * _LOWER_RATE**tries)
            prediction = search.predicted(slower)
            broken = _broken(slower, prediction, search.question)
            if broken is None:
                search.keep(slower, prediction)
                break
        if broken is not None:
            search.rejected.append(broken)
    return tuple(order)


def _broken(fleet: Fleet, prediction: Prediction, question: Question) -> Rejected | None:
    """The objective that the fleet misses most."""
    slo, percent = question.slo, f"p{100 * question.slo.percentile:g}"
    misses = [
        (prediction.ttft_slo_s / slo.ttft_s, "ttft", prediction.ttft_slo_s, slo.ttft_s),
        (prediction.itl_slo_s / slo.itl_s, "itl", prediction.itl_slo_s, slo.itl_s),
    ]
    miss, limit, is_s, wanted_s = max(misses)
    if miss <= 1:
        return None
    name = "time to first token" if limit == "ttft" else "time between tokens"
    words = (
        f"{name} {percent} {_ms(is_s)} ms > {_ms(wanted_s)} ms with {fleet.replicas} replicas "
        f"({fleet.gpus} GPUs) at {fleet.rate_per_s:.4g} requests/s, steps of {fleet.replica.max_step_tokens} tokens"
    )
    return Rejected(fleet.layout, limit, is_s, wanted_s, words)


def _rank(question: Question) -> Callable[[Plan], tuple[float, tuple[int, int, float, str]]]:
    """By cost; without a rate, most output tokens first."""
    if question.rate_per_s is None:
        return lambda plan: (-plan.prediction.output_tokens_s, plan.fleet.cost)
    return lambda plan: (0.0, plan.fleet.cost)


def _offline_tokens_s(replica: SteadyReplica) -> float:
    """Three rounds of as many requests of the mean length as run at once, all queued from the start."""
    prompt, output = round(replica.lengths.prompt_tokens), round(replica.lengths.output_tokens)
    running = max(1, min(replica.max_running, replica.cost.kv_tokens // (prompt + output)))
    load = OfflineLoad(3 * running, prompt, output, running, replica.max_step_tokens)
    return run_offline(replica.cost, load).output_tokens_s


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.4g}"
