"""Which series does a scrape of our exporters have, and with which labels?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from deployments.metric_table import METRICS, Metric
from deployments.observe.alerts import GROUPS
from deployments.observe.objectives import OBJECTIVES

# What Prometheus adds to each series it scrapes, the last ones by the chart's PodMonitor.
_TARGET = frozenset({"job", "instance", "release", "ray_io_cluster"})
_VLLM = frozenset({"model_name", "engine"})
_RAY_NODE = frozenset({"ip", "SessionName", "Version", "IsHeadNode", "RayNodeType"})
_RAY_GPU = _RAY_NODE | {"GpuIndex", "GpuDeviceName", "GpuUuid"}

# Other programs' series that boards and alerts rely on, on the same scrape.
FOREIGN: Mapping[str, frozenset[str]] = {
    "vllm:num_preemptions_total": _VLLM,
    "vllm:request_prompt_tokens_bucket": _VLLM | {"le"},
    "vllm:request_queue_time_seconds_bucket": _VLLM | {"le"},
    "ray_node_cpu_utilization": _RAY_NODE,
    "ray_node_mem_used": _RAY_NODE,
    "ray_node_mem_total": _RAY_NODE,
    "ray_node_gpus_utilization": _RAY_GPU,
    "ray_node_gram_used": _RAY_GPU,
    "ray_node_gpu_power_milliwatts": _RAY_GPU,
    "ray_serve_deployment_replica_healthy": frozenset({"deployment", "replica", "application"}),
}
# From kube-state-metrics, where there is one.
_KUBERNETES = {
    "kube_pod_init_container_status_waiting_reason": frozenset({"namespace", "pod", "uid", "container", "reason"}),
    "kube_job_failed": frozenset({"namespace", "job_name", "condition"}),
}
_PROMETHEUS = {"up": frozenset(), "ALERTS": frozenset({"alertname", "alertstate", "severity"})}


def series() -> dict[str, frozenset[str]]:
    """Name -> labels, of everything that a query may name."""
    found = {name: frozenset(labels) for metric in METRICS.values() for name, labels in _of(metric)}
    assert all(not group.recordings for group in GROUPS if group is not OBJECTIVES)
    recorded = {recording.record: frozenset({"release", "model"}) for recording in OBJECTIVES.recordings}
    every = found | recorded | FOREIGN | _KUBERNETES | _PROMETHEUS
    return {name: labels | _TARGET for name, labels in every.items()}


def _of(metric: Metric) -> Iterator[tuple[str, tuple[str, ...]]]:
    if metric.kind != "histogram":
        yield metric.name, metric.labels
        return
    yield f"{metric.name}_bucket", (*metric.labels, "le")
    yield f"{metric.name}_sum", metric.labels
    yield f"{metric.name}_count", metric.labels
