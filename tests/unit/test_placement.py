"""Do TP groups stay inside a node, is a possible placement always found, and do refusals help?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import permutations, product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.serve._private.common import DeploymentID, ReplicaID

from cluster.left_groups import groups_without_replica
from cluster.placement import check_landed, order_bundles, place_replicas, replica_bundles, stages_by_node
from cluster.policy import NodeSnapshot, Topology
from cluster.topology import ISLAND_LABEL, RACK_LABEL, Gang, Room
from deployments.directory import SERVE_APPLICATION, SERVE_ENGINE
from llama31.engine import RankReport
from llama31.errors import PlacementRefused
from llama31.parallel import ParallelPlan

Placement = tuple[tuple[str, ...], ...]


def node(
    name: str, gpus: float, cpus: float = 64, gpus_total: float | None = None, island: int | str = "", rack: str = ""
) -> NodeSnapshot:
    labels = {key: str(value) for key, value in ((ISLAND_LABEL, island), (RACK_LABEL, rack)) if value != ""}
    total = gpus if gpus_total is None else gpus_total
    return NodeSnapshot(name, f"10.0.0.{name}", cpus, cpus, total, gpus, labels)


def plan(text: str) -> ParallelPlan:
    return ParallelPlan.parse(text)


def place(nodes: list[NodeSnapshot], text: str, replicas: int = 1, cpus: float = 1, rank_cpus: float = 1) -> Placement:
    return place_replicas(Topology(tuple(nodes)), plan(text), replicas, cpus, rank_cpus)


def refusal(nodes: list[NodeSnapshot], text: str, replicas: int = 1, cpus: float = 1, rank_cpus: float = 1) -> str:
    with pytest.raises(PlacementRefused) as caught:
        place(nodes, text, replicas, cpus, rank_cpus)
    return str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "text", "replicas", "expected"),
    [
        ([node("1", 8)], "tp8", 1, (("1",),)),
        ([node("1", 8), node("2", 8)], "tp8pp2", 1, (("1", "2"),)),
        ([node("1", 8)], "tp4pp2", 1, (("1", "1"),)),
        ([node("1", 2), node("2", 2)], "tp2pp2", 1, (("1", "2"),)),
        # A TP group takes the fullest node that holds it, so that whole nodes stay whole.
        ([node("1", 8), node("2", 2)], "tp2", 1, (("2",),)),
        ([node("1", 1), node("2", 4)], "tp2", 2, (("2",), ("2",))),
        ([node("1", 3), node("2", 3)], "tp2", 2, (("1",), ("2",))),
        # The replica's own process needs the node of its only stage ...
        ([node("1", 2, cpus=2), node("2", 4, cpus=3)], "tp2", 1, (("2",),)),
        # ... but any node if there are several.
        ([node("1", 2, cpus=2), node("2", 2, cpus=2), node("3", 0, cpus=1)], "tp2pp2", 1, (("1", "2"),)),
        # Groups stay inside islands: 8 GPUs in islands of 4 hold two groups of 3, 6 free ones only one.
        ([node("1", 8, island=4)], "tp3", 2, (("1",), ("1",))),
        ([node("1", 6, gpus_total=8, island=4), node("2", 8)], "tp3", 2, (("1",), ("2",))),
        ([node("1", 5, gpus_total=8, island=4), node("2", 8)], "tp4", 2, (("1",), ("2",))),
        # Stages stay in one rack, the fullest that holds them, although fuller nodes are elsewhere.
        (
            [node("1", 4, rack="a"), node("2", 2, rack="b"), node("3", 4, rack="a"), node("4", 2, rack="c")],
            "tp2pp2",
            2,
            (("1", "1"), ("3", "3")),
        ),
        ([node("1", 2, rack="b"), node("2", 2, rack="a"), node("3", 2, rack="b")], "tp2pp2", 1, (("1", "3"),)),
        # No rack holds both, or labels do not tell: any nodes.
        ([node("1", 2, rack="a"), node("2", 2, rack="b")], "tp2pp2", 1, (("1", "2"),)),
        ([node("1", 2), node("2", 2, rack="b"), node("3", 2)], "tp2pp2", 1, (("1", "2"),)),
    ],
)
def test_placements(nodes: list[NodeSnapshot], text: str, replicas: int, expected: Placement) -> None:
    assert place(nodes, text, replicas) == expected


@pytest.mark.parametrize(
    ("nodes", "text", "replicas", "words"),
    [
        ([], "tp1", 1, ("no node is alive", "1 GPUs are needed, the cluster has 0")),
        ([node("1", 2)], "tp4", 1, ("1 x 4 GPUs", "node 10.0.0.1 (1): 2 of 2 GPUs free", "add nodes: 4 GPUs")),
        ([node("1", 8)], "tp8pp2", 1, ("2 x 8 GPUs, each group of 8 on one node", "16 GPUs are needed")),
        ([node("1", 4), node("2", 4)], "tp8", 1, ("each group of 8 on one node", "a plan whose TP group fits a node")),
        ([node("1", 1, gpus_total=8)], "tp2", 1, ("1 of 8 GPUs free", "free GPUs that others hold")),
        ([node("1", 2)], "tp1", 3, ("replica 3 of 3 does not fit", "add nodes: 3 GPUs")),
        (
            [node("1", 8), node("2", 8, gpus_total=16, cpus=3)],
            "tp8pp2",
            1,
            ("stage 1 of 2 (8 GPUs, 8 CPUs) finds no node", "(2): 8 of 16 GPUs free, 3 CPUs free, lacks 5 CPUs"),
        ),
        ([node("1", 2, cpus=1)], "tp2", 1, ("the only stage (2 GPUs, 3 CPUs) finds no node", "lacks 2 CPUs")),
        (
            [node("1", 2, cpus=0.5), node("2", 2, cpus=0.5)],
            "pp2",
            1,
            ("the replica's own process (1 CPUs) finds no node", "lacks 0.5 CPUs"),
        ),
        (
            [node("1", 8, island=4)],
            "tp8",
            1,
            ("lacks an NVLink island with 8 free GPUs", "its NVLink islands: tp 4 at most here"),
        ),
        ([node("1", 8, island="four")], "tp8", 1, ("label llama31/nvlink-island-gpus is 'four', not a number",)),
        ([node("1", 8, cpus=4)], "tp4", 1, ("4 CPUs free", "more CPUs (1 CPU for the replica and 1 for each rank)")),
    ],
)
def test_refusals_say_what_is_there_and_what_helps(
    nodes: list[NodeSnapshot], text: str, replicas: int, words: tuple[str, ...]
) -> None:
    message = refusal(nodes, text, replicas)
    for part in words if "label" in message else (*words, "The cluster has: ", "What would help: "):
        assert part in message


HALVES = st.integers(0, 12).map(lambda n: n / 2)
TOPOLOGIES = st.lists(st.tuples(st.integers(0, 5), HALVES), max_size=3).map(
    lambda rows: tuple(node(str(i), gpus, cpus) for i, (gpus, cpus) in enumerate(rows))
)
PLANS = st.builds(ParallelPlan, st.integers(1, 3), st.integers(1, 3))
PROCESS_CPUS = st.sampled_from((0.5, 1.0, 2.0, 3.0))
RANK_CPUS = st.sampled_from((0.0, 0.5, 1.0))


def fits(topology: Topology, parallel: ParallelPlan, stages: Placement, cpus: float, rank_cpus: float) -> bool:
    """Whether the nodes hold these stages, and somewhere allowed the replicas' own processes."""
    gpus_free = {n.node_id: n.gpus_free for n in topology.nodes}
    cpus_free = {n.node_id: n.cpus_free for n in topology.nodes}
    for node_id, count in Counter(s for replica in stages for s in replica).items():
        gpus_free[node_id] -= count * parallel.tp
        cpus_free[node_id] -= count * parallel.tp * rank_cpus
    if parallel.pp == 1:
        for (node_id,) in stages:
            cpus_free[node_id] -= cpus
    elif sum(int(max(0.0, free) // cpus) for free in cpus_free.values()) < len(stages):
        return False
    return min(gpus_free.values(), default=0) >= 0 and min(cpus_free.values(), default=0) >= 0


def possible(topology: Topology, parallel: ParallelPlan, replicas: int, cpus: float, rank_cpus: float) -> bool:
    """Tries every assignment of stages to nodes."""
    one = list(product([n.node_id for n in topology.nodes], repeat=parallel.pp))
    return any(fits(topology, parallel, stages, cpus, rank_cpus) for stages in product(one, repeat=replicas))


@settings(max_examples=100, deadline=None)
@given(TOPOLOGIES, PLANS, PROCESS_CPUS, RANK_CPUS)
def test_one_replica_is_refused_only_if_nothing_fits(
    nodes: tuple[NodeSnapshot, ...], parallel: ParallelPlan, cpus: float, rank_cpus: float
) -> None:
    check_against_every_assignment(Topology(nodes), parallel, 1, cpus, rank_cpus)


@settings(max_examples=50, deadline=None)
@given(TOPOLOGIES, PLANS, st.integers(1, 2))
def test_several_replicas_are_refused_only_if_the_gpus_do_not_suffice(
    nodes: tuple[NodeSnapshot, ...], parallel: ParallelPlan, replicas: int
) -> None:
    roomy = tuple(node(n.node_id, n.gpus_free, cpus=64) for n in nodes)
    check_against_every_assignment(Topology(roomy), parallel, replicas, 1.0, 1.0)


def check_against_every_assignment(
    topology: Topology, parallel: ParallelPlan, replicas: int, cpus: float, rank_cpus: float
) -> None:
    try:
        placed = place_replicas(topology, parallel, replicas, cpus, rank_cpus)
    except PlacementRefused:
        assert not possible(topology, parallel, replicas, cpus, rank_cpus)
    else:
        assert [len(stages) for stages in placed] == [parallel.pp] * replicas
        assert fits(topology, parallel, placed, cpus, rank_cpus)


LABELLED = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 8), st.sampled_from((1, 2, 3, 4, 8)), st.sampled_from("abc")),
    max_size=5,
).map(
    lambda rows: tuple(
        node(str(i), max(total - used, 0), gpus_total=total, island=island, rack=rack)
        for i, (total, used, island, rack) in enumerate(rows)
    )
)


@settings(max_examples=50, deadline=None)
@given(LABELLED, PLANS, st.integers(1, 3), st.randoms(use_true_random=False))
def test_the_order_of_nodes_does_not_matter(
    nodes: tuple[NodeSnapshot, ...], parallel: ParallelPlan, replicas: int, dice: Random
) -> None:
    shuffled = list(nodes)
    dice.shuffle(shuffled)
    assert outcome(nodes, parallel, replicas) == outcome(shuffled, parallel, replicas)


@settings(max_examples=50, deadline=None)
@given(LABELLED, PLANS)
def test_groups_fit_islands_and_stages_a_rack_that_holds_them(
    nodes: tuple[NodeSnapshot, ...], parallel: ParallelPlan
) -> None:
    placed = outcome(nodes, parallel, 1)
    by_id = {n.node_id: n for n in nodes}
    alone = {rack: outcome([n for n in nodes if n.labels[RACK_LABEL] == rack], parallel, 1) for rack in "abc"}
    if placed is None:
        assert not any(alone.values())
        return
    for node_id, stages in Counter(placed[0]).items():
        one = Topology((by_id[node_id],))
        assert int(by_id[node_id].labels[ISLAND_LABEL]) >= parallel.tp
        assert place_replicas(one, ParallelPlan(parallel.tp), stages, 1.0, 1.0), "its islands hold so many groups"
    if any(alone.values()):
        assert len({by_id[node_id].labels[RACK_LABEL] for node_id in placed[0]}) == 1


def outcome(nodes: Sequence[NodeSnapshot], parallel: ParallelPlan, replicas: int) -> Placement | None:
    try:
        return place_replicas(Topology(tuple(nodes)), parallel, replicas, 1.0, 1.0)
    except PlacementRefused:
        return None


def test_a_refused_gang_takes_nothing() -> None:
    room = Room(Topology((node("1", 2), node("2", 1))))
    assert room.place(Gang(plan("tp2pp2"), 1.0, 1.0)) is None
    assert room.place(Gang(plan("tp2"), 1.0, 1.0)) == ("1",)


@pytest.mark.parametrize(("text", "strategy"), [("tp1", "STRICT_PACK"), ("tp8", "STRICT_PACK"), ("tp2pp2", "PACK")])
def test_a_replica_is_one_gang(text: str, strategy: str) -> None:
    bundles = replica_bundles(plan(text), replica_cpus=1.5, rank_cpus=0.5)
    process, *ranks = bundles.bundles
    assert (bundles.strategy, process) == (strategy, {"CPU": 1.5})
    assert ranks == [{"GPU": 1.0, "CPU": 0.5}] * plan(text).world_size


@pytest.mark.parametrize("nodes", sorted(set(permutations("aabb"))), ids="".join)
def test_bundles_are_ordered_so_that_groups_stay_together(nodes: tuple[str, ...]) -> None:
    order = order_bundles(nodes, plan("tp2pp2"))
    assert sorted(order) == [0, 1, 2, 3]
    assert nodes[order[0]] == nodes[order[1]]
    assert nodes[order[2]] == nodes[order[3]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=8), PLANS)
def test_any_order_of_bundles_gives_whole_groups_or_a_refusal(nodes: list[str], parallel: ParallelPlan) -> None:
    groups = sum(count // parallel.tp for count in Counter(nodes).values())
    if groups < parallel.pp:
        with pytest.raises(PlacementRefused, match=f"Free {parallel.tp} GPUs on one node per stage"):
            order_bundles(nodes, parallel)
        return
    order = order_bundles(nodes, parallel)
    assert len(set(order)) == parallel.world_size
    for stage in range(parallel.pp):
        assert len({nodes[i] for i in order[stage * parallel.tp : (stage + 1) * parallel.tp]}) == 1


def test_a_straddling_group_is_named() -> None:
    with pytest.raises(PlacementRefused, match="3 on node-aaa, 1 on node-bbb"):
        order_bundles(["node-aaaa", "node-bbbb", "node-aaaa", "node-aaaa"], plan("tp2pp2"))


def test_stages_of_a_rack_follow_each_other() -> None:
    racks = Topology((node("x", 1, rack="r1"), node("y", 1, rack="r2"), node("z", 1, rack="r1")))
    assert order_bundles(["x", "y", "z"], plan("pp3"), racks) == (0, 2, 1)
    assert order_bundles(["x", "y", "z"], plan("pp3")) == (0, 1, 2)


def report(rank: int, node_id: str, tp: int = 2, gpu: int | None = None) -> RankReport:
    return RankReport(rank, rank // tp, rank % tp, node_id, "10.0.0.1", 100 + rank, "cpu", gpu)


LANDED = [report(0, "a"), report(1, "a"), report(2, "b"), report(3, "b")]


def test_ranks_that_landed_as_placed() -> None:
    check_landed(LANDED, plan("tp2pp2"))
    check_landed([report(rank, "a") for rank in range(4)], plan("tp2pp2"))
    assert stages_by_node(LANDED[::-1]) == {"a": (0, 1), "b": (2, 3)}


@pytest.mark.parametrize(
    ("reports", "words"),
    [
        ([], r"ranks \[0, 1, 2, 3\] of tp2pp2 did not report"),
        (LANDED[:3], r"ranks \[3\] of tp2pp2 did not report"),
        ([*LANDED[:3], report(3, "c")], "stage 1 of tp2pp2 landed on 2 nodes: b, c"),
    ],
)
def test_ranks_that_did_not_land(reports: list[RankReport], words: str) -> None:
    with pytest.raises(PlacementRefused, match=words):
        check_landed(reports, plan("tp2pp2"))


def test_a_group_that_straddles_islands_is_named() -> None:
    across = [report(0, "a", gpu=3), report(1, "a", gpu=4)]
    check_landed(across, plan("tp2"), Topology((node("a", 8),)))
    check_landed(across, plan("tp2"), Topology((node("a", 8, island=8),)))
    with pytest.raises(PlacementRefused, match=r"stage 0 of tp2 landed on GPUs 3, 4 of node 10\.0\.0\.a, in different"):
        check_landed(across, plan("tp2"), Topology((node("a", 8, island=4),)))


def test_only_groups_of_our_own_dead_replicas_count_as_left() -> None:
    groups = {
        "1": "SERVE_REPLICA::llama31#engine#dead",
        "2": "SERVE_REPLICA::llama31#engine#alive",
        "3": "SERVE_REPLICA::llama31#engineer#dead",
        "4": "SERVE_REPLICA::other#engine#dead",
        "5": "SERVE_GANG::llama31_engine_0",
        "6": "",
        "7": "my-own",
    }
    assert groups_without_replica(groups, {"SERVE_REPLICA::llama31#engine#alive"}, "llama31", "engine") == {"1"}


def test_serve_still_names_groups_so() -> None:
    name = ReplicaID("x1", DeploymentID(SERVE_ENGINE, SERVE_APPLICATION)).to_full_id_str()
    assert groups_without_replica({"1": name}, (), SERVE_APPLICATION, SERVE_ENGINE) == {"1"}
