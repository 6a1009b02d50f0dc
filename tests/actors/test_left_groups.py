"""Does real Ray give back what dead replicas left, and keep what belongs to others?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table

from cluster.left_groups import GroupSweeper
from cluster.local import LocalCluster
from cluster.ray_cluster import snapshot
from deployments.deploy import sweep_left_groups
from deployments.directory import SERVE_APPLICATION, SERVE_ENGINE
from tests.serving import wait_for

pytestmark = pytest.mark.ray
LIMIT_S = 20.0
OURS = f"SERVE_REPLICA::{SERVE_APPLICATION}#{SERVE_ENGINE}#"


@ray.remote(num_cpus=0)
class Process:
    """Stands where a replica's actor does."""


@pytest.fixture
def group(ray_cluster: LocalCluster) -> Iterator[Callable[[str], PlacementGroup]]:
    """Makes detached groups of one logical GPU, as Serve does; takes away what is left of them."""
    made: list[PlacementGroup] = []

    def make(name: str) -> PlacementGroup:
        made.append(placement_group([{"GPU": 1}], name=name, lifetime="detached"))
        assert made[-1].wait(LIMIT_S)
        return made[-1]

    yield make
    for group in made:
        ray.util.remove_placement_group(group)


def states(*groups: PlacementGroup) -> list[str]:
    table = placement_group_table()
    return [table[group.id.hex()]["state"] for group in groups]


def test_a_left_group_goes_and_all_others_stay(group: Callable[[str], PlacementGroup]) -> None:
    left, alive, foreign = group(f"{OURS}left"), group(f"{OURS}alive"), group("SERVE_REPLICA::other#engine#left")
    owner = Process.options(name=f"{OURS}alive", namespace="serve", lifetime="detached").remote()
    sweeper = GroupSweeper(SERVE_APPLICATION, SERVE_ENGINE)
    try:
        assert sweeper.look() == 0, "Serve may just have made it, and its actor comes next"
        assert (sweeper.look(), sweeper.suspects) == (1, 0)
        wanted = ["REMOVED", "CREATED", "CREATED"]
        wait_for(lambda: states(left, alive, foreign) == wanted, LIMIT_S, "only the left group to go")
        assert sweeper.look() == 0
    finally:
        ray.kill(owner)
    # Killed hard: what it held is free again two looks later.
    wait_for(lambda: sweeper.look() == 1, LIMIT_S, "the group of a killed replica to go")
    assert states(foreign) == ["CREATED"]


def test_a_starting_service_takes_what_an_earlier_one_left(group: Callable[[str], PlacementGroup]) -> None:
    left = [group(f"{OURS}left-{number}") for number in range(4)]
    wait_for(lambda: snapshot().gpus_free == 0, LIMIT_S, "all GPUs to be held")
    sweep_left_groups()
    wait_for(lambda: snapshot().gpus_free == 4, LIMIT_S, "all GPUs to be free")
    assert states(*left) == ["REMOVED"] * 4
