"""Do the re-implemented scorers give the scores that the published code gives?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest

from cluster.policy import ReplicaSnapshot, RequestFeatures, RouterPolicy
from deployments.policies.llmd_baselines import (
    DEFAULT,
    LOAD,
    PRECISE,
    Dice,
    RandomPick,
    ReportedIndex,
    RoutedIndex,
    WeightedScores,
)

REQUEST = RequestFeatures(1000, 100)


def replica(name: str, waiting: int = 0, kv_share: float = 0.0, ready: bool = True) -> ReplicaSnapshot:
    return ReplicaSnapshot(name, ready, False, 0, waiting, 0, int(1000 * kv_share), 1000, 0)


@pytest.mark.parametrize(
    ("weights", "replicas", "cached", "chosen"),
    [
        (LOAD, [replica("a", kv_share=0.4), replica("b", kv_share=0.3)], {}, "b"),
        (LOAD, [replica("a", 1), replica("b", kv_share=0.9)], {}, "b"),
        (DEFAULT, [replica("a", kv_share=0.9), replica("b")], {"a": 1000}, "a"),
        (DEFAULT, [replica("a", 1, 0.1), replica("b")], {"a": 1000}, "b"),
        # Spread: whoever has least of those that have anything scores as if it had nothing.
        (PRECISE, [replica("a", kv_share=0.9), replica("b")], {"a": 900, "b": 800}, "a"),
        (PRECISE, [replica("a", kv_share=0.9), replica("b")], {"a": 800, "b": 800}, "b"),
        (PRECISE, [replica("a", 1, 0.9), replica("b")], {"a": 64}, "a"),
    ],
)
def test_scores(weights: object, replicas: list[ReplicaSnapshot], cached: Mapping[str, int], chosen: str) -> None:
    for order in (replicas, replicas[::-1]):
        assert WeightedScores(weights).route(REQUEST, order, cached).replica_id == chosen  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [RandomPick(), WeightedScores(LOAD), WeightedScores(PRECISE)])
def test_only_the_ready_and_all_of_the_equal(policy: RouterPolicy) -> None:
    replicas = [replica("a"), replica("b"), replica("c", ready=False)]
    counts = Counter(policy.route(REQUEST, replicas).replica_id for _ in range(400))
    assert set(counts) == {"a", "b"}
    assert min(counts.values()) > 150
    assert policy.route(REQUEST, replicas[2:]).replica_id is None


def test_dice_are_equal_for_a_seed() -> None:
    assert [Dice(5).below(6) for _ in range(3)] == [Dice(5).below(6)] * 3
    dice = Dice(1)
    assert set(Counter(dice.below(6) for _ in range(6000))) == set(range(6))


def test_the_routed_index_looks_at_the_beginning_and_forgets_the_oldest() -> None:
    index = RoutedIndex(max_match_blocks=2, max_blocks_per_replica=4)
    index.expect("a", (1, 2, 3, 4))
    assert index.match((1, 2, 30, 40)) == {"a": 4}
    assert index.match((1, 20, 30, 40)) == {"a": 2}
    index.drop("a", (1, 2))
    index.expect("a", (5, 6))
    assert index.match((1, 2)) == {"a": 2}
    index.expect("a", (7, 8))
    assert index.match((1, 2)) == {}
    assert index.match((5, 6)) == {"a": 2}
    index.forget("a")
    assert index.match((5, 6)) == {}


def test_the_reported_index_knows_what_replicas_say() -> None:
    index = ReportedIndex()
    index.expect("a", (1, 2, 3))
    assert index.match((1, 2, 3)) == {}
    index.store("a", (1, 2, 3))
    index.store("b", (1,))
    index.drop("a", (2,))
    assert index.match((1, 2, 3)) == {"a": 1, "b": 1}
    index.forget("b")
    assert index.match((1, 2, 3)) == {"a": 1}
