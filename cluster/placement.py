"""Where do the ranks of a replica go? Each TP group inside one node, or a refusal in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from cluster.policy import Bundles, Topology
from cluster.topology import RACK_LABEL, Gang, Room, island_gpus
from llama31.engine import RankReport
from llama31.errors import PlacementRefused
from llama31.parallel import ParallelPlan

PendingReason = Literal["resources", "layout", "launching"]
NO_NODES = Topology(())


def replica_bundles(plan: ParallelPlan, replica_cpus: float, rank_cpus: float) -> Bundles:
    """What Ray must reserve, all or nothing, for one replica.

    vLLM takes one GPU a bundle. With one stage Ray itself guarantees a single node; with several
    it packs, and `order_bundles` refuses what it packed badly.
    """
    ranks = [{"GPU": 1.0, "CPU": rank_cpus} for _ in range(plan.world_size)]
    strategy = "STRICT_PACK" if plan.pp == 1 else "PACK"
    return Bundles(bundles=({"CPU": replica_cpus}, *ranks), strategy=strategy)


def place_replicas(
    topology: Topology, plan: ParallelPlan, replicas: int, replica_cpus: float, rank_cpus: float
) -> tuple[tuple[str, ...], ...]:
    """Node ids per replica and stage: `result[replica][stage]`. Decides only; nothing is reserved.

    The stages of a replica share a rack (`RACK_LABEL`) where one has room for all of them. The order in which
    nodes are listed does not matter. Raises: PlacementRefused, naming the bundle that finds no node, what every
    node lacks for it, and what would help.
    """
    room = Room(topology)
    gang = Gang(plan, replica_cpus, rank_cpus)
    placed = []
    for replica in range(replicas):
        stages = room.place(gang)
        if stages is None:
            raise PlacementRefused(_refusal(topology, room, gang, replicas, replica))
        placed.append(stages)
    return tuple(placed)


def why_pending(topology: Topology, plan: ParallelPlan, replica_cpus: float, rank_cpus: float) -> PendingReason:
    """Why a replica that should be there has no process: for want of room, or although there is some."""
    if Room(topology).place(Gang(plan, replica_cpus, rank_cpus)) is not None:
        return "launching"
    cpus = replica_cpus + plan.world_size * rank_cpus
    enough = topology.gpus_free >= plan.world_size and sum(node.cpus_free for node in topology.nodes) >= cpus
    return "layout" if enough else "resources"


def order_bundles(bundle_nodes: Sequence[str], plan: ParallelPlan, topology: Topology = NO_NODES) -> tuple[int, ...]:
    """Bundle index of every rank so that each TP group lies on one node: `result[rank]`.

    `bundle_nodes[i]` is the node id of GPU bundle i as Ray placed it. Stages in one rack follow each other, so that
    as few hops as possible leave it. Raises: PlacementRefused.
    """
    by_node: dict[str, list[int]] = defaultdict(list)
    for index, node_id in enumerate(bundle_nodes):
        by_node[node_id].append(index)
    racks = {node.node_id: node.labels.get(RACK_LABEL, "") for node in topology.nodes}
    order: list[int] = []
    for _, indices in sorted(by_node.items(), key=lambda entry: (racks.get(entry[0], ""), entry[1])):
        whole_groups = len(indices) // plan.tp * plan.tp
        order.extend(indices[:whole_groups])
    if len(order) < plan.world_size:
        held = ", ".join(f"{len(indices)} on {node_id[:8]}" for node_id, indices in by_node.items())
        raise PlacementRefused(
            f"Ray spread the {plan.world_size} ranks of {plan} as {held}: a tensor-parallel group of "
            f"{plan.tp} would straddle nodes. Free {plan.tp} GPUs on one node per stage"
        )
    return tuple(order[: plan.world_size])


def check_landed(reports: Sequence[RankReport], plan: ParallelPlan, topology: Topology = NO_NODES) -> None:
    """Checks, from what the ranks themselves reported, that they run where they should.

    Raises: PlacementRefused if ranks are missing or a TP group straddles nodes, or NVLink islands of a node
    whose label tells them.
    """
    missing = set(range(plan.world_size)) - {report.rank for report in reports}
    if missing:
        raise PlacementRefused(f"ranks {sorted(missing)} of {plan} did not report")
    labelled = {node.node_id: node for node in topology.nodes}
    for stage in range(plan.pp):
        group = [report for report in reports if report.stage == stage]
        nodes = {report.node_id for report in group}
        if len(nodes) != 1:
            raise PlacementRefused(f"stage {stage} of {plan} landed on {len(nodes)} nodes: {', '.join(sorted(nodes))}")
        node = labelled.get(nodes.pop())
        gpus = sorted(report.gpu for report in group if report.gpu is not None)
        if node is not None and gpus and gpus[0] // island_gpus(node) != gpus[-1] // island_gpus(node):
            raise PlacementRefused(
                f"stage {stage} of {plan} landed on GPUs {', '.join(map(str, gpus))} of node {node.address}, in "
                f"different NVLink islands of {island_gpus(node)}. What would help: one Ray node for each island"
            )


def _refusal(topology: Topology, room: Room, gang: Gang, replicas: int, placed: int) -> str:
    plan = gang.plan
    what = f"{plan} needs {plan.pp} x {plan.tp} GPUs, each group of {plan.tp} on one node"
    if replicas > 1:
        what += f"; replica {placed + 1} of {replicas} does not fit"
    bundle = room.missing(gang)
    has = "; ".join(room.describe(node, bundle) for node in topology.nodes) or "no node is alive"
    return f"{what}: {bundle} finds no node. The cluster has: {has}. What would help: {_help(topology, gang, replicas)}"


def _help(topology: Topology, gang: Gang, replicas: int) -> str:
    plan, needed = gang.plan, gang.plan.world_size * replicas
    total = sum(node.gpus_total for node in topology.nodes)
    islands = max((min(island_gpus(node), node.gpus_total) for node in topology.nodes), default=0)
    if total < needed:
        return f"add nodes: {needed} GPUs are needed, the cluster has {total:g}"
    if islands < plan.tp:
        return (
            "use a plan whose TP group fits a node and its NVLink islands: "
            f"tp {islands:g} at most here, and more pp; or nodes with larger islands"
        )
    if any(node.gpus_free < node.gpus_total for node in topology.nodes):
        return "free GPUs that others hold, or use fewer replicas"
    cpus = f"{gang.replica_cpus:g} CPU for the replica and {gang.rank_cpus:g} for each rank"
    return f"use a plan whose TP group fits a node, or give the nodes more CPUs ({cpus})"


def stages_by_node(reports: Sequence[RankReport]) -> Mapping[str, tuple[int, ...]]:
    """Node id -> ranks that run there, for status pages and logs."""
    ranks: dict[str, list[int]] = defaultdict(list)
    for report in sorted(reports, key=lambda r: r.rank):
        ranks[report.node_id].append(report.rank)
    return {node_id: tuple(found) for node_id, found in ranks.items()}
