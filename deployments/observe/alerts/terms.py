"""What do the conditions and runbooks of several alerts have in common?"""

from __future__ import annotations

# The names under which Prometheus scrapes our exporters and Ray's head.
JOB = "llama31"
HEAD_JOB = "llama31-head"
# NAMESPACE/RELEASE, with which the chart's PodMonitor labels each target, so that several releases in one Prometheus do
# not mix. Where no target has the label, all of them count as one service.
RELEASE = "release"


def grown(series: str, window: str) -> str:
    """By how much a counter grew, never negative.

    `increase` would miss the 1 with which a new series begins. The last value of a day, so that a gap in the scrapes
    makes no series new; a counter that began anew has grown by all it shows.
    """
    return f"({series} - last_over_time({series}[1d] offset {window}) >= 0 or {series})"


WANTED = "max by (release, model) (llama31_replicas_wanted)"
# 0 for every model that an ingress serves, also where no replica exports anything.
READY = f"(sum by (release, model) (llama31_replica_ready) or 0 * {WANTED})"

END_REPLICA = "End the replica: [By hand](#by-hand)."
ROLL_BACK = "`helm rollback RELEASE -n NAMESPACE`"
REPLICA_LOG = "The replica's log: Ray dashboard, *Serve*, or `kubectl logs` of the pod of its rank 0."
