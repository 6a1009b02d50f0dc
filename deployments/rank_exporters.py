"""Who serves the metrics of a node that holds ranks, but neither an ingress nor their replica's own process?

One small actor on each such node: Prometheus asks every engine pod, and Ray's agent there knows its GPUs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.policy import Topology
from cluster.ray_cluster import node_metrics_urls
from deployments.config import METRICS_VARIABLE, metrics_directory
from deployments.node_exporter import NodeExporter


class RankExporter:
    """The node's exporter, in a process of its own."""

    async def run(self, host: str, port: int) -> None:
        """Holds the node's port, or waits for it."""
        urls = await asyncio.to_thread(node_metrics_urls)
        await NodeExporter(metrics_directory(), host, port, urls).run()


def other_machines(node_ids: Iterable[str], own_address: str, topology: Topology) -> tuple[str, ...]:
    """Those of the nodes that are not on this machine: one for each address, which has one metrics port."""
    address_of = {node.node_id: node.address for node in topology.nodes}
    first_at = {address_of[node_id]: node_id for node_id in reversed(tuple(node_ids)) if node_id in address_of}
    return tuple(sorted(node_id for address, node_id in first_at.items() if address != own_address))


def export_nodes(node_ids: Iterable[str], host: str, port: int, directory: Path) -> tuple[ActorHandle[Any], ...]:
    """Exporters on these nodes, which end with this process; keep the handles, or Ray may end them sooner."""
    return tuple(_export(node_id, host, port, directory) for node_id in node_ids) if port else ()


def _export(node_id: str, host: str, port: int, directory: Path) -> ActorHandle[Any]:
    actor = ray.remote(RankExporter)
    exporter = actor.options(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        runtime_env={"env_vars": {METRICS_VARIABLE: str(directory)}},
    ).remote()
    exporter.run.remote(host, port)
    return exporter
