"""What does docs/metrics.md say? The table of `deployments/metric_table`, for people who read a dashboard.

`python -m deployments.metrics_page > docs/metrics.md`, or `make docs`.
"""

from __future__ import annotations

from deployments.metric_table import METRICS, Metric

_INTRODUCTION = """# Metrics

Written by `make docs` from `deployments/metric_table`; a test fails when this page is stale.

## One scrape per node
Each node with an ingress, a replica or a rank serves everything on one port: `ingress.metrics_port`, 9400 unless set,
at `/metrics`, without a key. It is on loopback; where a NetworkPolicy or a firewall guards the port, set
`ingress.metrics_host` and `ingress.serve_metrics_openly`.

- `llama31_`: ours, in the table below; `promtool check metrics` finds no fault with them.
- `vllm:`: vLLM's own, `model_name` is the model; two replicas on one node are counted together.
- `ray_`: what Ray's agent of the node says: resources, actors, Serve, GPUs; left out if it takes more than 2 s.

```yaml
scrape_configs:
  - job_name: llama31
    static_configs: [{targets: ["127.0.0.1:9400"]}]
```

Do not scrape Ray's own port on such a node as well, or its series are there twice. A Ray head without ingress and
replica has only that port.

Several services under one Prometheus: give the targets of each a label `release` of its own. Alerts and boards tell
them apart by it; the chart's PodMonitor sets it to NAMESPACE/RELEASE.

Gauges of a process, and every series with a `replica` label, go when the process goes. Other counters live as long as
the service's directory on the node. What several ingresses say alike (`llama31_gpus`, `llama31_placement_pending`) is
for `max`, not for `sum`.

## Labels
No label ever holds text of a request. Tenants appear as a short hash, keyed with the cluster's token, or with their
names if `ingress.show_tenant_names`; after 500 of them (each process, since its start) the next ones are counted as
`other`. `replica` changes with every restart, all others have few values.

## Ours
A histogram has `_bucket`, `_sum` and `_count`. What energy and CO2e mean: [energy.md](energy.md).

| name | kind, unit | labels | meaning | what to do |
|---|---|---|---|---|"""


def metrics_page() -> str:
    """The whole page in Markdown."""
    return "\n".join([_INTRODUCTION, *(_row(metric) for metric in METRICS.values())])


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind}, {metric.unit} | {labels} | {metric.meaning} | {metric.action} |"


if __name__ == "__main__":
    print(metrics_page())
