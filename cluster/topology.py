"""How many more whole gangs do the free GPUs of these nodes hold: in which node, NVLink island and rack?

Two node labels tell what Ray does not know. Without them a node is one island, and nothing is said of racks.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.policy import NodeSnapshot, Topology
from llama31.errors import PlacementRefused
from llama31.parallel import ParallelPlan

# How many GPUs of the node reach each other over NVLink, where that is not all of them.
ISLAND_LABEL = "llama31/nvlink-island-gpus"
RACK_LABEL = "topology.kubernetes.io/rack"


def island_gpus(node: NodeSnapshot) -> int:
    """GPUs of one NVLink island of the node. Raises: PlacementRefused for a label that is no number."""
    text = node.labels.get(ISLAND_LABEL)
    if text is None:
        return max(1, int(node.gpus_total))
    if not text.isdecimal() or int(text) < 1:
        raise PlacementRefused(f"node {node.address}: label {ISLAND_LABEL} is {text!r}, not a number of GPUs")
    return int(text)


@dataclass(frozen=True, slots=True)
class Gang:
    """What one replica needs, all or nothing: its own process, and `pp` groups of `tp` ranks."""

    plan: ParallelPlan
    replica_cpus: float
    rank_cpus: float


@dataclass(frozen=True, slots=True)
class Bundle:
    """A part of a gang that must not be torn: its words, GPUs and CPUs."""

    name: str
    gpus: int
    cpus: float

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.gpus} GPUs, {self.cpus:g} CPUs)" if self.gpus else f"{self.name} ({self.cpus:g} CPUs)"
        )


@dataclass(slots=True)
class _Free:
    """What is left of one node: free GPUs of each island, and CPUs."""

    node: NodeSnapshot
    islands: tuple[int, ...]
    cpus: float

    @classmethod
    def of(cls, node: NodeSnapshot) -> _Free:
        """As it is now; Ray hands out GPUs in ascending order, so that the free ones are the last."""
        size, total = island_gpus(node), int(node.gpus_total)
        used = total - int(node.gpus_free)
        ends = range(size, total + size, size)
        return cls(node, tuple(max(0, min(end, total) - max(used, end - size)) for end in ends), node.cpus_free)

    @property
    def gpus(self) -> int:
        """Free ones of all islands."""
        return sum(self.islands)

    def groups(self, tp: int) -> int:
        """Whole TP groups that its islands still hold."""
        return sum(free // tp for free in self.islands)

    def take(self, bundle: Bundle) -> None:
        """Out of the fullest island that holds its GPUs."""
        self.cpus -= bundle.cpus
        if bundle.gpus:
            chosen = min(
                (i for i, free in enumerate(self.islands) if free >= bundle.gpus), key=self.islands.__getitem__
            )
            self.islands = tuple(free - bundle.gpus * (i == chosen) for i, free in enumerate(self.islands))

    def holds(self, bundle: Bundle) -> bool:
        """Whether it has room for the whole bundle."""
        return self.cpus >= bundle.cpus and (not bundle.gpus or self.groups(bundle.gpus) > 0)

    def lacks(self, bundle: Bundle) -> str:
        """What stands against the bundle here; empty if nothing does."""
        lacks = []
        if bundle.gpus > self.gpus:
            lacks.append(f"{bundle.gpus - self.gpus:g} GPUs")
        elif bundle.gpus and not self.groups(bundle.gpus):
            lacks.append(f"an NVLink island with {bundle.gpus} free GPUs")
        if bundle.cpus > self.cpus:
            lacks.append(f"{bundle.cpus - self.cpus:g} CPUs")
        return " and ".join(lacks)


class Room:
    """What is left of the nodes while gangs are placed on them."""

    def __init__(self, topology: Topology) -> None:
        nodes = sorted(topology.nodes, key=lambda node: node.node_id)
        self._free = {node.node_id: _Free.of(node) for node in nodes}

    def place(self, gang: Gang) -> tuple[str, ...] | None:
        """Node id per stage, or None; then nothing is taken."""
        process, stage = self._bundles(gang)
        hosts = [None] if process is None else [free for free in self._free.values() if free.holds(process)]
        for nodes in self._neighbourhoods(gang):
            for host in hosts:
                stages = self._place_stages(nodes, stage, gang.plan.pp, host, process)
                if stages is not None:
                    return stages
        return None

    def missing(self, gang: Gang) -> Bundle:
        """The first bundle of a gang that does not fit."""
        process, stage = self._bundles(gang)
        if process is not None and not any(free.holds(process) for free in self._free.values()):
            return process
        fitting = sum(self._stages_held(free, stage, gang.plan.pp) for free in self._free.values())
        number = min(fitting, gang.plan.pp - 1)
        name = f"stage {number} of {gang.plan.pp}" if gang.plan.pp > 1 else "the only stage"
        return Bundle(name, stage.gpus, stage.cpus)

    def describe(self, node: NodeSnapshot, bundle: Bundle) -> str:
        """The node as it is, and what it lacks for the bundle after those that were placed before it."""
        gpus = f"{node.gpus_free:g} of {node.gpus_total:g} GPUs free"
        told = f"node {node.address} ({node.node_id[:8]}): {gpus}, {node.cpus_free:g} CPUs free"
        lacks = self._free[node.node_id].lacks(bundle)
        return f"{told}, lacks {lacks}" if lacks else told

    def _bundles(self, gang: Gang) -> tuple[Bundle | None, Bundle]:
        """The replica's own process shares the ranks' node if there is one stage, else any node holds it."""
        stage_cpus = gang.plan.tp * gang.rank_cpus
        if gang.plan.pp == 1:
            return None, Bundle("stage", gang.plan.tp, stage_cpus + gang.replica_cpus)
        return Bundle("the replica's own process", 0, gang.replica_cpus), Bundle("stage", gang.plan.tp, stage_cpus)

    def _neighbourhoods(self, gang: Gang) -> list[list[_Free]]:
        """Where the stages may lie, best first: the fullest rack that holds them, at last any nodes."""
        everywhere = list(self._free.values())
        racks: dict[str, list[_Free]] = {}
        for free in everywhere if gang.plan.pp > 1 else ():
            if (rack := free.node.labels.get(RACK_LABEL)) is not None:
                racks.setdefault(rack, []).append(free)
        order = sorted(racks, key=lambda rack: (sum(free.gpus for free in racks[rack]), rack))
        return [*(racks[rack] for rack in order), everywhere]

    def _stages_held(self, free: _Free, stage: Bundle, at_most: int) -> int:
        by_cpu = int(free.cpus / stage.cpus) if stage.cpus else at_most
        return min(free.groups(stage.gpus), by_cpu)

    def _place_stages(
        self, nodes: list[_Free], stage: Bundle, count: int, host: _Free | None, process: Bundle | None
    ) -> tuple[str, ...] | None:
        """Takes the GPUs of every stage from the fullest node that still holds a whole TP group."""
        before = [(free, free.islands, free.cpus) for free in self._free.values()]
        if host is not None and process is not None:
            host.take(process)
        stages: list[str] = []
        for _ in range(count):
            fitting = [free for free in nodes if free.holds(stage)]
            if not fitting:
                for free, islands, cpus in before:
                    free.islands, free.cpus = islands, cpus
                return None
            chosen = min(fitting, key=lambda free: (free.gpus, free.node.node_id))
            chosen.take(stage)
            stages.append(chosen.node.node_id)
        return tuple(stages)
