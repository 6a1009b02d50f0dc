"""Does a request go to the replica with the least work in tokens, and never to one that cannot take it?"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.policy import ReplicaSnapshot, RequestFeatures, Route
from deployments.policies.router import LeastTokens, load_tokens

REQUEST = RequestFeatures(prompt_tokens=100, max_output_tokens=50)
IDLE = ReplicaSnapshot("a", True, False, 0, 0, 0, 0, 1000, 0)


def replica(replica_id: str, **changes: object) -> ReplicaSnapshot:
    return replace(IDLE, replica_id=replica_id, **changes)


@pytest.mark.parametrize(
    ("replicas", "chosen"),
    [
        ([replica("a")], "a"),
        ([replica("a", kv_tokens_used=10), replica("b", kv_tokens_used=9)], "b"),
        ([replica("a", waiting_prompt_tokens=10), replica("b", kv_tokens_used=9)], "b"),
        ([replica("a", outstanding_tokens=10), replica("b", kv_tokens_used=9)], "b"),
        # The two views of one replica's work are not added up.
        ([replica("a", outstanding_tokens=10, kv_tokens_used=10), replica("b", kv_tokens_used=11)], "a"),
        ([replica("a", kv_tokens_used=6, waiting_prompt_tokens=6), replica("b", kv_tokens_used=11)], "b"),
        # Sequences do not count, tokens do.
        ([replica("a", running=1, kv_tokens_used=500), replica("b", running=9, kv_tokens_used=90)], "b"),
        # A tie has one answer, whatever the order.
        ([replica("b"), replica("a")], "a"),
        ([replica("a", ready=False), replica("b", kv_tokens_used=999)], "b"),
        ([replica("a", draining=True), replica("b", kv_tokens_used=999)], "b"),
    ],
)
def test_least_work_wins(replicas: list[ReplicaSnapshot], chosen: str) -> None:
    assert LeastTokens().route(REQUEST, replicas) == Route(chosen, "least_tokens")


@pytest.mark.parametrize(
    ("replicas", "reason"),
    [
        ([], "no replica is known"),
        ([replica("a", draining=True), replica("b", draining=True)], "every replica is draining"),
        ([replica("a", ready=False)], "no replica is ready"),
        ([replica("a", ready=False), replica("b", draining=True)], "no replica is ready"),
    ],
)
def test_nobody_can_take_it(replicas: list[ReplicaSnapshot], reason: str) -> None:
    assert LeastTokens().route(REQUEST, replicas) == Route(None, reason)


COUNTS = st.integers(0, 50)
SNAPSHOTS = st.builds(
    replica,
    st.sampled_from("abcdef"),
    ready=st.booleans(),
    draining=st.booleans(),
    kv_tokens_used=COUNTS,
    waiting_prompt_tokens=COUNTS,
    outstanding_tokens=COUNTS,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(SNAPSHOTS, max_size=6, unique_by=lambda r: r.replica_id), st.randoms(use_true_random=False))
def test_choice_is_minimal_and_ignores_the_order(replicas: list[ReplicaSnapshot], random: object) -> None:
    route = LeastTokens().route(REQUEST, replicas)
    usable = {r.replica_id: load_tokens(r) for r in replicas if r.ready and not r.draining}
    assert (route.replica_id is None) == (not usable)
    if route.replica_id is not None:
        assert usable[route.replica_id] == min(usable.values())
    shuffled = list(replicas)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert LeastTokens().route(REQUEST, shuffled) == route
