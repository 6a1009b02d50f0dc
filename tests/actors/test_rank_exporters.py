"""Does a node with ranks alone have a metrics port, for as long as its replica lives?"""

from __future__ import annotations

import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest
import ray

from cluster.local import LocalCluster
from deployments.rank_exporters import export_nodes
from tests.serving import wait_for
from tests.waiting import free_port

pytestmark = pytest.mark.ray


class Replica:
    """A process that asks for the exporters, as a replica does, and tells how many there are."""

    def export(self, node_ids: Sequence[str], port: int, directory: Path) -> int:
        self.exporters = export_nodes(node_ids, "127.0.0.1", port, directory)
        return len(self.exporters)


def test_an_exporter_serves_rays_series_until_its_replica_is_gone(ray_cluster: LocalCluster, tmp_path: Path) -> None:
    port = free_port()

    def scrape() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
                return str(response.read().decode())
        except OSError:
            return ""

    node_id = ray.nodes()[-1]["NodeID"]
    replica = ray.remote(Replica).options(num_cpus=0).remote()
    assert ray.get(replica.export.remote([node_id], port, tmp_path), timeout=60) == 1
    wait_for(lambda: "ray_node_cpu_utilization" in scrape(), 60, "the node is exported")
    ray.kill(replica)
    wait_for(lambda: not scrape(), 30, "the port is closed with the replica")


def test_without_a_port_there_is_no_exporter(tmp_path: Path) -> None:
    assert export_nodes(["any"], "127.0.0.1", 0, tmp_path) == ()
