"""When are weights missing or damaged?"""

from __future__ import annotations

from deployments.observe.alerts.terms import grown
from deployments.observe.rule import Alert, Group

WEIGHTS = Group(
    "llama31-weights",
    alerts=(
        Alert(
            "Llama31WeightsCorrupt",
            "ticket",
            "0m",
            grown("llama31_weights_faults_total", "1h") + " > 0",
            "{{ $labels.model }}: faulty weights on {{ $labels.instance }} ({{ $labels.fault }})",
            "A checkpoint in a node's weight cache is incomplete or damaged. The replica there refuses to start.",
            (
                "`llama31 weights check DIR --digests` on that node: names the shard.",
                "The node's disk: SMART, `dmesg`.",
            ),
            (
                "`llama31 weights fetch SOURCE DIR` fetches again what is damaged, and only that.",
                "Twice on one node: replace the disk.",
            ),
        ),
        Alert(
            "Llama31WeightsNotThere",
            "ticket",
            "5m",
            "max by (namespace, pod, container) (max_over_time(kube_pod_init_container_status_waiting_reason"
            '{container=~"weights-(check|fetch)", reason="CrashLoopBackOff"}[10m])) > 0\n'
            'or max by (namespace, job_name) (kube_job_failed{job_name=~".+-weights", condition="true"}) > 0',
            "{{ $labels.pod }}{{ $labels.job_name }} in {{ $labels.namespace }} cannot have its weights",
            "On Kubernetes the weights are fetched and checked before Ray hears of a pod, by init containers and by "
            "the chart's hook; one of them fails again and again. Needs kube-state-metrics, whose labels must not be "
            "renamed (`honorLabels`, as kube-prometheus-stack has it).",
            (
                "`kubectl logs POD -n NAMESPACE -c weights-check`, or `-c weights-fetch`: names the file, or what the "
                "source says.",
                "`kubectl logs job/RELEASE-weights -n NAMESPACE -c weights-fetch` of the hook.",
            ),
            (
                "A file is missing or damaged: `helm upgrade` runs the hook, which fetches it again.",
                "No access: the token in `weights.secret`. No room: the disk under `weights.hostPath`.",
            ),
        ),
    ),
)
