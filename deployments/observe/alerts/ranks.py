"""When does a rank die or hang?"""

from __future__ import annotations

from deployments.observe.alerts.terms import END_REPLICA, REPLICA_LOG, grown
from deployments.observe.rule import Alert, Group

RANKS = Group(
    "llama31-ranks",
    alerts=(
        Alert(
            "Llama31RankDead",
            "page",
            "0m",
            f"max by (release, model, rank, stage, node) ({grown('llama31_ranks_lost_total', '10m')}) > 0",
            "rank {{ $labels.rank }} (stage {{ $labels.stage }}) of {{ $labels.model }} died on {{ $labels.node }}",
            "A rank's process ended. The whole replica is lost with it: its streams go on elsewhere, and "
            "Serve starts the gang anew. An ingress counts it, so the news outlives the pod. Ranks that went together "
            "with their replica's own node are not known; Llama31TargetDown tells of that node.",
            (
                "The rank's log: Ray dashboard, *Actors*, while Ray remembers it.",
                "`dmesg` and `nvidia-smi -q` on that node: Xid, ECC errors, the OOM killer.",
            ),
            (
                "Wait for the replacement (One model, *Replicas ready*).",
                "A GPU fault: cordon the node and delete its pod, so that the gang goes elsewhere.",
            ),
        ),
        Alert(
            "Llama31RankSilent",
            "page",
            "1m",
            "llama31_rank_silent_seconds > 20",
            "rank {{ $labels.rank }} of {{ $labels.replica }} has finished no step for {{ $value | humanizeDuration }}",
            "The engine has work, but this rank has finished no step. A collective operation that hangs looks like "
            "this; `engine.step_timeout_s` ends the replica in the end.",
            (
                "One replica, *Silence of ranks*: one, a stage, or all? All: the network between nodes.",
                "`nvidia-smi` there: 100 % use at low power is a rank that waits inside NCCL.",
            ),
            (f"Rather than wait: {END_REPLICA}", "A node that repeats it: cordon it."),
        ),
        Alert(
            "Llama31EngineStuck",
            "page",
            "1m",
            "llama31_replica_running > 0 and changes(llama31_replica_steps_total[2m]) == 0",
            "{{ $labels.replica }}: {{ $value }} sequences run, but no step has ended for two minutes",
            "The engine has work and makes no progress.",
            ("One replica: *Steps*, *Silence of ranks*.", REPLICA_LOG),
            (f"{END_REPLICA} Serve replaces the gang.",),
        ),
    ),
)
