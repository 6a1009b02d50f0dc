"""What the autoscaler is shown: demand of several ingresses, replicas on their way, room for whole ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.policy import DemandTick, NodeSnapshot, ScalerMemory, Topology
from deployments.app import build_app
from deployments.autoscaler import Sight, engine_count, fleet_snapshot, remembered, room
from deployments.config import load_config
from deployments.decision_log import Decision
from deployments.demand import SILENT_S, DemandCounter, DemandHistory, DemandReport
from deployments.directory import Phase, ReplicaRecord
from deployments.policies.autoscaler import SloAutoscaler
from llama31.errors import ConfigInvalid
from tests.unit.test_autoscaler import RULES, fleet

SCALING = {
    "autoscaling": {
        "min_replicas": 0,
        "max_replicas": 4,
        "lead_s": 20.0,
        "prompt_tokens_per_s": 100.0,
        "output_tokens_per_s": 50.0,
    }
}


def record(phase: Phase) -> ReplicaRecord:
    return ReplicaRecord(replica_id=phase, incarnation=1, model="m", plan="tp1", phase=phase)


def test_demand_is_what_grew_over_all_ingresses() -> None:
    history = DemandHistory(measure_s=20.0)
    history.add(0.0, {"a": DemandReport(requests=100, prompt_tokens=5000)})
    assert history.ticks() == (), "what came before nobody looked is no demand of now"
    history.add(10.0, {"a": DemandReport(110, 5500, 400, 10), "b": DemandReport(5, 50, 0, 0)})
    assert history.ticks() == (DemandTick(10.0, 15, 550, 15 * 40.0),)
    history.add(20.0, {"a": DemandReport(110, 5500, 400, 10), "b": DemandReport(7, 70, 0, 0)})
    history.add(30.0, {"a": DemandReport(110, 5500, 400, 10), "b": DemandReport(7, 70, 0, 0)})
    assert [tick.requests for tick in history.ticks()] == [2, 0], "only the last 20 s"


def test_what_an_ingress_counted_before_anybody_asked_it_is_no_demand() -> None:
    """After the loss of the head their reports come one by one, with the counts of days."""
    history = DemandHistory(measure_s=60.0)
    history.add(0.0, {"a": DemandReport(requests=100, age_s=9000.0)})
    history.add(5.0, {"a": DemandReport(105, age_s=9005.0), "b": DemandReport(90_000, age_s=9000.0)})
    history.add(10.0, {"a": DemandReport(110, age_s=9010.0), "b": DemandReport(90_007, age_s=9005.0)})
    assert [tick.requests for tick in history.ticks()] == [5, 12]


def test_an_ingress_that_is_cut_off_is_thought_to_get_as_much_as_before() -> None:
    history = DemandHistory(measure_s=10_000.0)
    history.add(0.0, {"a": DemandReport(100, 1000, age_s=50.0)})
    history.add(10.0, {"a": DemandReport(120, 1200, age_s=60.0)})
    for now_s in (20.0, 30.0):
        history.add(now_s, {})
    history.add(40.0, {"a": DemandReport(181, 1810, age_s=90.0)})
    assert [tick.requests for tick in history.ticks()] == [20, 20, 20, 21], "its return is no lump"
    history.add(40.0 + SILENT_S + 1, {})
    assert history.ticks()[-1].requests == 0, "it was killed"


def test_an_ingress_that_left_brings_no_more() -> None:
    history = DemandHistory(measure_s=60.0)
    history.add(0.0, {"a": DemandReport(100, age_s=50.0)})
    history.add(10.0, {"a": DemandReport(120, age_s=60.0)})
    last = DemandReport(125, age_s=61.0, is_over=True)
    for now_s in (20.0, 30.0):
        history.add(now_s, {"a": last})
    history.add(40.0, {})
    assert [tick.requests for tick in history.ticks()] == [20, 5, 0, 0]


def test_a_counter_tells_what_came_and_what_waits() -> None:
    counter = DemandCounter(in_flight=[1, 2, 3], held=[1], backlog_s=lambda: 1.5)
    counter.arrive(30)
    counter.answer(12)
    report = counter.report()
    assert report == DemandReport(1, 30, 12, 1, in_flight=3, held=1, backlog_s=1.5, age_s=report.age_s)
    assert 0 <= report.age_s < 60


def test_a_wanted_replica_that_is_not_announced_yet_is_starting() -> None:
    sight = Sight(
        7.0,
        (record("ready"), record("loading"), record("draining")),
        {"a": DemandReport(in_flight=5, held=0, backlog_s=1.0), "b": DemandReport(in_flight=2, held=2)},
        room=1,
    )
    picture = fleet_snapshot(sight, present=3, demand=())
    assert (picture.ready, picture.starting, picture.draining, picture.room) == (1, 2, 1, 1)
    assert (picture.waiting_requests, picture.running_requests, picture.backlog_s) == (2, 5, 1.0)


@pytest.mark.parametrize(("free", "expected"), [((4, 4), 2), ((3, 3), 0), ((8, 2), 2), ((8, 8), 3)])
def test_room_counts_whole_replicas(free: tuple[int, int], expected: int) -> None:
    nodes = tuple(NodeSnapshot(str(n), "", 64, 64, 8, gpus) for n, gpus in enumerate(free))
    config = load_config("standin", {"plan": "tp4", "model": "llama-3.1-8b", "engine.kv_cache_bytes": 1 << 30})
    assert room(Topology(nodes), config, most=3) == expected


def test_a_new_controller_takes_a_young_memory() -> None:
    _, after = SloAutoscaler(RULES).decide(fleet(2.0, now_s=1000.0), ScalerMemory())
    last = Decision(fleet(2.0, now_s=1000.0), ScalerMemory(), SloAutoscaler(RULES).decide(fleet(), after)[0], after)
    assert remembered(last, 1100.0) == after
    assert remembered(last, 9000.0) is None
    assert remembered(None, 0.0) is None


def test_serve_is_given_a_number_or_a_policy(tmp_path: Path) -> None:
    assert engine_count(load_config("standin"), tmp_path) == {"num_replicas": 1}
    config = load_config("standin", SCALING)
    scaling = engine_count(config, tmp_path)["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["initial_replicas"], scaling["max_replicas"]) == (0, 1, 4)
    application = build_app(config, tmp_path)
    engine = application._bound_deployment.init_args[2]._bound_deployment
    assert engine._deployment_config.autoscaling_config.policy.policy_function.endswith("ServeAutoscaler")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"autoscaling.min_replicas": 5}, "min_replicas is 5, more than max_replicas, 4"),
        ({"replicas": 5}, "replicas is 5, how many there are at first; autoscaling.max_replicas is 4"),
        ({"autoscaling.lead_s": 65.0}, "a request waits only ingress.hold_s, 30 s, for the first"),
        ({"autoscaling.slo": 1}, "autoscaling.slo"),
    ],
)
def test_bounds_that_do_not_fit_are_refused(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigInvalid, match=said):
        load_config("standin", {"autoscaling": dict(SCALING["autoscaling"])} | overrides)
