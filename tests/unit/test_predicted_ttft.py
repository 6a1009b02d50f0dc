"""Does a request go where it is answered first at the least cost to others, whatever is known of the replicas?"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cluster.fading_sum import HALF_S, FadingSum
from cluster.policy import NOTHING_CACHED, ReplicaSnapshot, RequestFeatures, RouterPolicy
from deployments.policies.prefix_index import PrefixIndex
from deployments.policies.router import TYPICAL_SPEED, PredictedTtft, RouterWeights
from deployments.policies.router_baselines import BASELINES, PowerOfTwo, RoundRobin, StickyUntilSaturated
from deployments.policies.ttft import ttft_s

SPEED = TYPICAL_SPEED
IDLE = ReplicaSnapshot("a", True, False, 0, 0, 0, 0, 450_000, 0, speed=SPEED)
REQUEST = RequestFeatures(9000, 1000, "", tuple(range(70)))
POLICIES = {**BASELINES, "ours": PredictedTtft}


def replica(replica_id: str, **changes: object) -> ReplicaSnapshot:
    return replace(IDLE, replica_id=replica_id, **changes)


def prefill_tokens(seconds: float) -> int:
    return round(seconds / SPEED.prefill_token_s)


@pytest.mark.parametrize(
    ("replicas", "cached", "chosen", "reason"),
    [
        ([replica("a"), replica("b")], {"b": 8064}, "b", "prefix"),
        # A short queue is no reason to compute the prompt again, a long one is.
        ([replica("a"), replica("b", prefill_tokens=prefill_tokens(1.5))], {"b": 8064}, "b", "prefix"),
        ([replica("a"), replica("b", prefill_tokens=prefill_tokens(5.0))], {"b": 8064}, "a", "spread"),
        ([replica("a"), replica("b", prefill_tokens=prefill_tokens(5.0))], {"a": 128, "b": 8064}, "a", "spread"),
        # No room: the wait for others' ends counts.
        ([replica("a"), replica("b", kv_tokens_used=450_000, prefill_tokens=18_000)], {"b": 8064}, "a", "spread"),
        ([replica("a"), replica("b", kv_tokens_used=30_000, prefill_tokens=18_000)], {"b": 8064}, "b", "prefix"),
        # Many long decodes put off a request's end as a queue does; few are no reason to compute the prompt again.
        ([replica("a"), replica("b", running=40, kv_tokens_used=200_000)], {"b": 8064}, "a", "spread"),
        ([replica("a"), replica("b", running=10, kv_tokens_used=50_000)], {"b": 8064}, "b", "prefix"),
        # Nobody has it: the one that has and got the least to do.
        ([replica("a", prefill_tokens=20_000), replica("b")], {}, "b", "least_loaded"),
        ([replica("a", recent_tokens=20.0), replica("b", recent_tokens=10.0)], {}, "b", "least_loaded"),
        ([replica("a", outstanding_tokens=20), replica("b", outstanding_tokens=10)], {}, "b", "least_loaded"),
        # Both have it: likewise.
        ([replica("a", outstanding_tokens=20), replica("b")], {"a": 8064, "b": 8064}, "b", "prefix"),
        # Two blocks more are nearly a tie, ten are not.
        ([replica("a", outstanding_tokens=20), replica("b")], {"a": 8064, "b": 7936}, "b", "spread"),
        ([replica("a", outstanding_tokens=20), replica("b")], {"a": 8064, "b": 6784}, "a", "prefix"),
        # A silent one may be stuck: it takes more than a cached prompt to send it a request.
        ([replica("a"), replica("b", age_s=9.0)], {"b": 8064}, "a", "spread"),
        ([replica("b", age_s=9.0)], {"b": 8064}, "b", "stale"),
        ([replica("a", speed=None), replica("b", speed=None)], {"b": 8064}, "b", "no_speed"),
        ([replica("a", speed=None), replica("b")], {"a": 8064}, "a", "prefix"),
        ([replica("a", prefill_tokens=9000), replica("b")], NOTHING_CACHED, "b", "no_index"),
        ([replica("a", ready=False), replica("b"), replica("c", draining=True)], {"a": 8064, "c": 8064}, "b", None),
        ([], {}, None, "no replica is known"),
        ([replica("a", ready=False)], {}, None, "no replica is ready"),
    ],
)
def test_what_is_chosen_and_why(
    replicas: list[ReplicaSnapshot], cached: Mapping[str, int], chosen: str | None, reason: str | None
) -> None:
    route = PredictedTtft().route(REQUEST, replicas, cached)
    assert route.replica_id == chosen
    assert reason is None or route.reason == reason
    if chosen is not None:
        assert route.cached_tokens == cached.get(chosen, 0)
        assert (route.ttft_s is None) == all(r.speed is None for r in replicas)


def test_a_prompt_below_one_block_has_its_own_reason() -> None:
    route = PredictedTtft().route(replace(REQUEST, prompt_tokens=50, block_hashes=()), [IDLE], {})
    assert (route.replica_id, route.reason) == ("a", "short_prompt")


def test_without_an_index_sessions_stay_where_they_were() -> None:
    dice = random.Random(3)
    homes: Counter[str] = Counter()
    for session in range(200):
        request = replace(REQUEST, affinity_key=f"session-{session}")
        routes = set()
        for _ in range(4):
            load = [replica(f"r{i}", running=dice.randrange(9), prefill_tokens=dice.randrange(9000)) for i in range(8)]
            routes.add(PredictedTtft().route(request, load).replica_id)
        assert len(routes) == 1
        homes.update(str(r) for r in routes)
        # One that goes away moves its own sessions only.
        rest = [replica(f"r{i}") for i in range(8) if f"r{i}" != "r0"]
        assert routes == {"r0"} or {PredictedTtft().route(request, rest).replica_id} == routes
    assert min(homes.values()) > 8
    home = PredictedTtft().route(replace(REQUEST, affinity_key="s"), [replica(f"r{i}") for i in range(8)]).replica_id
    busy = [replica(f"r{i}", prefill_tokens=200_000 if f"r{i}" == home else 0) for i in range(8)]
    assert PredictedTtft().route(replace(REQUEST, affinity_key="s"), busy).replica_id != home


def test_a_burst_of_equal_prompts_stays_together_until_its_replica_is_busy() -> None:
    """A hot prefix gets a second home, then a third; a burst that one replica can carry does not."""
    policy, index = PredictedTtft(), PrefixIndex(100_000)
    fleet = {f"r{i}": replica(f"r{i}") for i in range(8)}
    holders = []
    for number in range(400):
        request = replace(REQUEST, block_hashes=(*range(62), 1000 + number))
        cached = {name: count * 128 for name, count in index.match(request.block_hashes).items()}
        route = policy.route(request, list(fleet.values()), cached)
        assert route.replica_id is not None
        chosen = fleet[route.replica_id]
        index.expect(chosen.replica_id, request.block_hashes)
        fleet[chosen.replica_id] = replace(
            chosen,
            running=chosen.running + 1,
            prefill_tokens=chosen.prefill_tokens + 9000 - route.cached_tokens,
            kv_tokens_used=min(chosen.kv_tokens_used + 10_000 - route.cached_tokens, chosen.kv_tokens_total),
            recent_tokens=chosen.recent_tokens + 10_000,
        )
        holders.append(len(index.replicas))
    assert holders[10] == 1
    assert holders[-1] == 8
    loads = [r.running for r in fleet.values()]
    assert max(loads) <= 1.3 * sum(loads) / len(loads)


COUNT = st.integers(0, 60_000)
BURDENS = ("running", "waiting", "kv_tokens_used", "outstanding_tokens", "prefill_tokens", "recent_tokens", "cached")
SNAPSHOT = st.builds(
    replica,
    st.sampled_from("abcdefgh"),
    ready=st.booleans(),
    draining=st.booleans(),
    running=st.integers(0, 300),
    waiting=st.integers(0, 9),
    kv_tokens_used=st.integers(0, 450_000),
    outstanding_tokens=COUNT,
    prefill_tokens=COUNT,
    recent_tokens=st.integers(0, 10**7).map(float),
    age_s=st.sampled_from([0.0, 1.0, 5.0, 100.0]),
    speed=st.sampled_from([None, SPEED, replace(SPEED, fixed_s=0.1, max_step_tokens=2048)]),
)
FLEET = st.lists(SNAPSHOT, max_size=8, unique_by=lambda r: r.replica_id)
CACHED = st.one_of(st.just(NOTHING_CACHED), st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 12_000)))
ANY_REQUEST = st.builds(
    RequestFeatures,
    st.integers(1, 131_072),
    st.integers(0, 131_072),
    st.sampled_from(["", "session"]),
    st.sampled_from([(), (1, 2)]),
)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=50, deadline=None)
@given(FLEET, CACHED, ANY_REQUEST, st.randoms(use_true_random=False))
def test_the_chosen_is_ready_and_the_order_does_not_matter(
    name: str, fleet: list[ReplicaSnapshot], cached: Mapping[str, int], request_: RequestFeatures, dice: random.Random
) -> None:
    def route(replicas: list[ReplicaSnapshot]) -> object:
        policy: RouterPolicy = POLICIES[name]()
        return policy.route(request_, replicas, cached)

    found = route(fleet)
    ready = {r.replica_id for r in fleet if r.ready and not r.draining}
    assert (found.replica_id in ready) if ready else (found.replica_id is None)  # type: ignore[attr-defined]
    shuffled = dice.sample(fleet, len(fleet))
    # Equal pictures, equal answers, in another order and by another object.
    assert route(shuffled) == route(list(fleet)) == found


@settings(max_examples=50, deadline=None)
@given(
    FLEET,
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 8000)),
    st.sampled_from(
        ["running", "waiting", "kv_tokens_used", "outstanding_tokens", "prefill_tokens", "recent_tokens", "cached"]
    ),
    st.integers(1, 50_000),
)
def test_a_worse_one_is_never_preferred(
    fleet: list[ReplicaSnapshot], cached: dict[str, int], what: str, more: int
) -> None:
    assume(fleet)
    better = replace(fleet[0], ready=True, draining=False)
    worse = replace(better, replica_id="worse")
    cached = dict(cached)
    cached["worse"] = cached.get(better.replica_id, 0)
    if what == "cached":
        assume(cached["worse"] > 0)
        cached["worse"] -= min(more, cached["worse"])
    else:
        worse = replace(worse, **{what: getattr(worse, what) + more})
    route = PredictedTtft().route(REQUEST, [better, worse, *fleet[1:]], cached)
    assert route.replica_id != "worse"


@pytest.mark.parametrize(
    ("changes", "uncached", "seconds"),
    [
        # One step of 1,000 tokens; two steps for 9,000; a queue is computed first.
        ({}, 1000, 0.0148 + 1000 * SPEED.prefill_token_s),
        ({}, 9000, 2 * 0.0148 + 9000 * SPEED.prefill_token_s),
        ({"prefill_tokens": 8000}, 1000, 2 * 0.0148 + 9000 * SPEED.prefill_token_s),
        # 100 running: their tokens take part of the step, and slow it; half a step is under way.
        (
            {"running": 100, "kv_tokens_used": 100_000},
            8192,
            2.5 * (0.0148 + 100 * 30e-6 + 100_000 * 30e-9) + 8192 * SPEED.prefill_token_s,
        ),
        # A tenth of the cache is missing: a tenth of 1,000 steps.
        ({"kv_tokens_used": 450_000}, 45_000, (6 + 100) * (0.0148 + 450_000 * 30e-9) + 45_000 * SPEED.prefill_token_s),
    ],
)
def test_the_prediction_is_the_formula(changes: dict[str, object], uncached: int, seconds: float) -> None:
    assert ttft_s(replica("a", **changes), SPEED, uncached, 1000) == pytest.approx(seconds)


def test_weights_are_the_callers_to_choose() -> None:
    queued = [replica("a"), replica("b", prefill_tokens=prefill_tokens(1.5))]
    assert PredictedTtft(RouterWeights(prefill_work=0.0)).route(REQUEST, queued, {"b": 8064}).replica_id == "a"


def test_round_robin_takes_each_in_turn_and_goes_on_from_a_number() -> None:
    fleet = [replica(name) for name in "cab"]
    policy = RoundRobin()
    assert [policy.route(REQUEST, fleet).replica_id for _ in range(4)] == ["a", "b", "c", "a"]
    assert RoundRobin(policy.sent).route(REQUEST, fleet).replica_id == "b"


def test_power_of_two_looks_at_two_different_ones() -> None:
    fleet = [replica(f"r{i}", outstanding_tokens=i) for i in range(4)]
    chosen = Counter(
        PowerOfTwo().route(replace(REQUEST, block_hashes=(number,)), fleet).replica_id for number in range(400)
    )
    # The most loaded of four is never the better of two; the least loaded is in half of the pairs.
    assert chosen["r3"] == 0
    assert 150 < chosen["r0"] < 250


@pytest.mark.parametrize(
    ("in_flight", "cached", "chosen"),
    [
        (0, 8000, "warm"),
        (1000, 8000, "warm"),
        # Saturated, but its queue is still shorter than computing the prompt elsewhere.
        (7000, 8000, "warm"),
        (8001, 8000, "cold"),
        # Not warm: fewest tokens in flight, the request's own included.
        (0, 7000, "warm"),
        (8000, 7000, "cold"),
    ],
)
def test_sticky_until_saturated(in_flight: int, cached: int, chosen: str) -> None:
    fleet = [replica("cold"), replica("warm", prefill_tokens=in_flight)]
    policy = StickyUntilSaturated(lead_tokens=1000)
    assert policy.route(REQUEST, fleet, {"warm": cached}).replica_id == chosen


def test_a_fading_sum_halves() -> None:
    recent = FadingSum()
    recent.add(8.0, 10.0)
    recent.add(1.0, 10.0 + HALF_S)
    assert recent.at(10.0 + HALF_S) == pytest.approx(5.0)
    assert recent.at(10.0 + 2 * HALF_S) == pytest.approx(2.5)
