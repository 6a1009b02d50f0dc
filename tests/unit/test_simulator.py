"""Does the simulator lose nothing, cheat nowhere, and jump to where single steps would have led?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.fading_sum import HALF_S
from cluster.policy import (
    NOTHING_CACHED,
    AdmissionSnapshot,
    Admitted,
    FleetSnapshot,
    Refused,
    ReplicaSnapshot,
    RequestFeatures,
    Route,
    Scale,
    ScalerMemory,
)
from cluster.report import Report, Slo
from cluster.sim_fleet import EngineSettings, Failure, Scaling, SimFleet, View
from cluster.sim_ingress import Policies
from cluster.simulator import Simulation, simulate
from cluster.workload import Request, SharedPrefixes, Workload, even_rate, poisson
from deployments.policies.admission import FairAdmission
from deployments.policies.autoscaler import ScalingRules, SloAutoscaler
from deployments.policies.prefix_index import PrefixIndex
from deployments.policies.router import LeastTokens, PredictedTtft
from llama31.errors import ConfigInvalid
from tests.unit.sim_naive import LineCost, naive_times

SMALL = EngineSettings(max_step_tokens=64, max_sequences=4, block_tokens=4)
LEAST = Policies(LeastTokens)
OURS = Policies(PredictedTtft, lambda: PrefixIndex(10_000))


def requests_of(rows: Sequence[tuple[float, int, int]]) -> list[Request]:
    """In order of arrival, which are apart enough to tell a step's end from an arrival."""
    now_s, made = 0.0, []
    for gap_s, prompt, output in rows:
        now_s += gap_s
        made.append(Request(now_s, prompt, output))
    return made


ROWS = st.lists(
    st.tuples(st.floats(0.0001, 0.5), st.integers(1, 90), st.integers(1, 40)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, kv_tokens=st.integers(140, 500))
def test_a_jump_leads_to_where_single_steps_lead(rows: list[tuple[float, int, int]], kv_tokens: int) -> None:
    requests = requests_of(rows)
    cost = LineCost(kv_tokens=kv_tokens)
    expected = naive_times(requests, cost, SMALL)
    report = simulate(Workload(requests), SimFleet(cost, 1, SMALL), LEAST)
    found = sorted(zip(report.arrival_s, report.ttft_s, report.e2e_s, strict=True))
    wanted = sorted(
        (r.arrival_s, times[0] - r.arrival_s, times[-1] - r.arrival_s)
        for r, times in zip(requests, expected, strict=True)
    )
    assert [tuple(map(float, row)) for row in found] == [pytest.approx(row, abs=1e-9) for row in wanted]
    gaps = [b - a for times in expected for a, b in pairwise(times)]
    assert sum(report.gaps.counts.values()) == len(gaps)
    if gaps:
        assert report.itl_percentile_s(1.0) == pytest.approx(max(gaps), rel=0.011)


FLEETS = st.builds(
    SimFleet,
    cost=st.builds(LineCost, kv_tokens=st.integers(160, 2000)),
    replicas=st.integers(1, 4),
    engine=st.just(SMALL),
    view=st.builds(View, ingresses=st.integers(1, 3), heartbeat_s=st.sampled_from([0.0, 0.05, 0.5])),
    start_s=st.floats(0.1, 5.0),
    failures=st.lists(st.builds(Failure, st.floats(0.01, 5.0), st.integers(0, 3)), max_size=3).map(tuple),
)


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, fleet=FLEETS, large=st.booleans())
def test_every_request_ends_exactly_once(rows: list[tuple[float, int, int]], fleet: SimFleet, large: bool) -> None:
    requests = requests_of(rows)
    if large:
        requests.append(Request(requests[-1].arrival_s + 0.1, 3000, 5))
    simulation = Simulation(fleet, LEAST, 16)
    report = simulation.run(Workload(requests))
    assert report.requests + sum(report.refused.values()) == len(requests)
    assert sum(report.refused.values()) == large
    finished = Counter((r.arrival_s, r.output_tokens) for r in requests if r.prompt_tokens < 3000)
    assert sum(tokens * count for (_, tokens), count in finished.items()) == report.output_tokens
    assert sorted(report.arrival_s) == sorted(arrival_s for arrival_s, _ in finished.elements())
    assert (report.ttft_s > 0).all()
    assert (report.e2e_s >= report.ttft_s).all()


def shared(requests: int = 300, seed: int = 1) -> Workload:
    prompts = SharedPrefixes(6, 3, 800, 100, 60, 16).prompts(seed)
    return Workload(even_rate(prompts, 20.0, requests / 20.0, seed), 16)


@pytest.mark.parametrize("policies", [LEAST, OURS])
def test_equal_seeds_give_equal_reports(policies: Policies) -> None:
    def figures() -> list[float]:
        fleet = SimFleet(LineCost(kv_tokens=8000), 3, view=View(2, 0.1, candidates=2))
        report = simulate(shared(), fleet, policies, seed=7)
        return [*report.ttft_s, *report.e2e_s, report.gpu_hours, *report.summary(Slo(0.5, 0.02)).values()]

    assert figures() == figures()


class Renamed:
    """Replica ids in another order, for a policy that breaks ties by them."""

    def __init__(self) -> None:
        self._inner = LeastTokens()

    def route(
        self, request: RequestFeatures, replicas: Sequence[ReplicaSnapshot], cached_tokens: object = NOTHING_CACHED
    ) -> Route:
        candidates = [r for r in replicas if r.ready and not r.draining]
        load = min(r.outstanding_tokens for r in candidates)
        return Route(max(r.replica_id for r in candidates if r.outstanding_tokens == load), "last")


class First(Renamed):
    def route(
        self, request: RequestFeatures, replicas: Sequence[ReplicaSnapshot], cached_tokens: object = NOTHING_CACHED
    ) -> Route:
        load = min(r.outstanding_tokens for r in replicas)
        return Route(min(r.replica_id for r in replicas if r.outstanding_tokens == load), "first")


def test_names_of_replicas_do_not_matter() -> None:
    requests = list(poisson(40.0, 200, [(50, 40), (90, 20)], seed=3))
    last, first = (
        simulate(Workload(requests), SimFleet(LineCost(), 4, SMALL), Policies(router)) for router in (Renamed, First)
    )
    assert sorted(last.ttft_s) == sorted(first.ttft_s)
    assert sorted(last.load.values()) == sorted(first.load.values())
    assert last.duration_s == first.duration_s


def test_kv_is_never_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.sim_kv import KvCache

    seen: list[tuple[int, int]] = []
    take: Callable[[KvCache, int], None] = KvCache.take

    def watched(self: KvCache, blocks: int) -> None:
        take(self, blocks)
        idle = sum(self._idle.values())
        assert idle == self._idle_blocks
        seen.append((self.used_blocks + idle, self.total_blocks))

    monkeypatch.setattr(KvCache, "take", watched)
    report = simulate(shared(), SimFleet(LineCost(kv_tokens=3000), 1, SMALL), OURS)
    assert report.requests == 300
    assert report.preemptions > 0
    assert all(held <= total for held, total in seen)
    assert any(held == total for held, total in seen)


@pytest.mark.parametrize(
    ("kv_tokens", "least", "most"), [(100_000, 0.96, 0.98), (1_500, 0.0, 0.7)], ids=["all fits", "thrashes"]
)
def test_prefixes_are_found_while_they_fit(kv_tokens: int, least: float, most: float) -> None:
    report = simulate(shared(), SimFleet(LineCost(kv_tokens=kv_tokens), 1), OURS)
    assert least <= report.hit_ratio <= most


def test_a_prompt_is_never_hit_as_a_whole() -> None:
    request = Request(0.0, 64, 2, "", (1, 2, 3, 4))
    later = Request(1.0, 64, 2, "", (1, 2, 3, 4))
    report = simulate(Workload([request, later]), SimFleet(LineCost(), 1), LEAST)
    assert report.cached_tokens == 48


def test_a_prefix_router_beats_least_load() -> None:
    def run(policies: Policies) -> Report:
        return simulate(shared(600), SimFleet(LineCost(kv_tokens=4000), 3, view=View(1, 0.05)), policies)

    ours, least = run(OURS), run(LEAST)
    assert ours.hit_ratio > least.hit_ratio + 0.1
    assert ours.ttft_percentile_s(0.9) < least.ttft_percentile_s(0.9)


def test_a_failed_replicas_requests_go_on_elsewhere() -> None:
    requests = list(poisson(20.0, 200, [(50, 100)], seed=5))
    calm = SimFleet(LineCost(), 2, start_s=3.0)
    report = simulate(Workload(requests), calm, LEAST)
    shaken = simulate(
        Workload(requests), SimFleet(LineCost(), 2, start_s=3.0, failures=(Failure(4.0, 1, notice_s=0.5),)), LEAST
    )
    assert shaken.requests == report.requests == 200
    assert shaken.output_tokens == report.output_tokens
    assert shaken.retries > 0
    assert shaken.itl_percentile_s(1.0) >= 0.5 > report.itl_percentile_s(1.0)
    assert len(shaken.load) == 3


def test_who_waits_for_a_cold_start_is_served_after_it() -> None:
    class One:
        def decide(self, fleet: FleetSnapshot, memory: ScalerMemory) -> tuple[Scale, ScalerMemory]:
            return Scale(1 if fleet.waiting_requests else 0, "test"), memory

    fleet = SimFleet(LineCost(), 0, start_s=30.0, scaling=Scaling(One(), max_replicas=2, tick_s=1.0))
    report = simulate(Workload([Request(0.5, 10, 5), Request(40.0, 10, 5)]), fleet, LEAST)
    assert report.ttft_s[0] == pytest.approx(30.5, abs=0.1)
    assert report.requests == 2
    assert {scale.target for _, scale in report.scales} == {0, 1}


def test_nobody_waits_for_ever_where_nothing_comes() -> None:
    report = simulate(Workload([Request(0.0, 10, 5)]), SimFleet(LineCost(), 0), LEAST)
    assert report.refused == {"no replica": 1}
    assert math.isnan(report.ttft_percentile_s(0.5))


def test_scaling_down_drains() -> None:
    class Down:
        def decide(self, fleet: FleetSnapshot, memory: ScalerMemory) -> tuple[Scale, ScalerMemory]:
            assert fleet.ready + fleet.starting + fleet.draining + fleet.room <= 3
            return Scale(1, "test"), memory

    requests = list(poisson(10.0, 100, [(50, 100)], seed=2))
    fleet = SimFleet(LineCost(), 3, scaling=Scaling(Down(), max_replicas=3, tick_s=2.0))
    report = simulate(Workload(requests), fleet, LEAST)
    always = simulate(Workload(requests), SimFleet(LineCost(), 3), LEAST)
    assert report.requests == 100
    assert report.gpu_hours < 0.7 * always.gpu_hours


class TwoAtOnce:
    """Admits by KV room, refuses who has waited for a second."""

    def decide(self, picture: AdmissionSnapshot) -> Admitted | Refused | None:
        for queue in picture.tenants:
            head = queue.heads[0]
            if picture.kv_tokens_free >= head.prompt_tokens + head.max_output_tokens:
                return Admitted(head.request_id, queue.tenant, 1.0)
            if head.waited_s > 1.0:
                return Refused(head.request_id, queue.tenant, "late", 1.0)
        return None


def test_admission_holds_and_refuses() -> None:
    requests = list(poisson(30.0, 60, [(50, 100)], seed=4, tenants=("a", "b")))
    fleet = SimFleet(LineCost(kv_tokens=320), 1, SMALL)
    report = simulate(Workload(requests), fleet, Policies(LeastTokens, admission=TwoAtOnce))
    assert report.requests + report.refused["late"] == 60
    assert report.refused["late"] > 0
    assert report.preemptions == 0


def test_productions_admission_keeps_a_flood_from_the_others() -> None:
    flood = [Request(r.arrival_s, 200, 50, "flood") for r in poisson(60.0, 600, [(1, 1)], seed=1)]
    quiet = [Request(r.arrival_s, 200, 50, "quiet") for r in poisson(2.0, 20, [(1, 1)], seed=2)]
    both = sorted(flood + quiet, key=lambda r: r.arrival_s)
    fleet = SimFleet(LineCost(kv_tokens=4000), 1, EngineSettings(max_sequences=8))

    def quiet_ttft_s(policies: Policies) -> float:
        report = simulate(Workload(both), fleet, policies)
        assert report.requests + sum(report.refused.values()) == 620
        return float(np.median(report.ttft_s[np.array(report.tenants) == "quiet"]))

    assert quiet_ttft_s(Policies(LeastTokens, admission=FairAdmission)) < 0.5 * quiet_ttft_s(LEAST)


def test_productions_autoscaler_follows_the_load() -> None:
    rules = ScalingRules(
        prompt_tokens_per_s=5000.0,
        output_tokens_per_s=1000.0,
        slo_ttft_s=2.0,
        lead_s=10.0,
        min_replicas=1,
        max_replicas=6,
    )
    calm = list(poisson(2.0, 600, [(200, 100)], seed=1))
    rush = [replace(r, arrival_s=100 + r.arrival_s) for r in poisson(40.0, 2000, [(200, 100)], seed=2)]
    requests = sorted(calm + rush, key=lambda r: r.arrival_s)
    scaling = Scaling(SloAutoscaler(rules), max_replicas=6)
    report = simulate(Workload(requests), SimFleet(LineCost(), 1, start_s=10.0, scaling=scaling), LEAST)
    targets = [scale.target for _, scale in report.scales]
    assert report.requests == 2600
    assert targets[10] == 1
    assert max(targets) >= 3
    assert targets[-1] < max(targets)
    assert report.gpu_hours < 0.8 * max(targets) * report.duration_s / 3600


def test_runs_go_on_with_warm_caches() -> None:
    simulation = Simulation(SimFleet(LineCost(), 1), OURS, 16)
    cold, warm = simulation.run(shared()), simulation.run(shared())
    assert warm.hit_ratio > cold.hit_ratio
    assert warm.requests == cold.requests == 300
    assert sum(warm.load.values()) == sum(cold.load.values())


@pytest.mark.parametrize(
    ("workload", "engine", "words"),
    [
        (Workload([], 16), EngineSettings(block_tokens=32), "not whole blocks"),
        (Workload([Request(2.0, 1, 1), Request(1.0, 1, 1)]), EngineSettings(), "in the order"),
    ],
)
def test_what_cannot_be_is_said(workload: Workload, engine: EngineSettings, words: str) -> None:
    with pytest.raises(ConfigInvalid, match=words):
        simulate(workload, SimFleet(LineCost(), 1, engine), LEAST)


def test_a_router_sees_what_each_replica_got_lately() -> None:
    seen: list[float] = []

    class Looks(LeastTokens):
        def route(
            self,
            request: RequestFeatures,
            replicas: Sequence[ReplicaSnapshot],
            cached_tokens: Mapping[str, int] = NOTHING_CACHED,
        ) -> Route:
            seen.append(sum(replica.recent_tokens for replica in replicas))
            return super().route(request, replicas, cached_tokens)

    # The first is over when the second comes, half of it is forgotten when the third comes.
    requests = [Request(0.0, 90, 10), Request(10.0, 50, 40), Request(10.0 + HALF_S, 10, 10)]
    simulate(Workload(requests), SimFleet(LineCost(), 1), Policies(Looks))
    assert seen[0] == 0
    assert seen[1] == pytest.approx(100, rel=0.05)
    assert seen[2] == pytest.approx(95, rel=0.05)
