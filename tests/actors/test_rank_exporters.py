"""Does a node with ranks alone have a metrics port, for as long as its replica lives?"""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
import ray

from cluster.local import LocalCluster
from deployments.rank_exporters import export_nodes
from tests.serving import wait_for
from tests.waiting import free_port

pytestmark = pytest.mark.ray


def test_an_exporter_serves_rays_series_until_its_replica_is_gone(ray_cluster: LocalCluster, tmp_path: Path) -> None:
    port = free_port()

    def scrape() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
                return str(response.read().decode())
        except OSError:
            return ""

    node_id = ray.nodes()[-1]["NodeID"]
    exporters = export_nodes([node_id], "127.0.0.1", port, tmp_path)
    assert len(exporters) == 1
    wait_for(lambda: "ray_node_cpu_utilization" in scrape(), 60, "the node is exported")
    del exporters
    wait_for(lambda: not scrape(), 30, "the port is closed with the last handle")
