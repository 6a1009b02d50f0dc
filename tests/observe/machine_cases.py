"""Which situations of ranks, doors, the head and weights make each alert fire, and which, close by, do not?"""

from __future__ import annotations

from tests.observe.situations import (
    CERTIFICATE,
    DAY_S,
    HEAD,
    INGRESS,
    NODE,
    OF_MODEL,
    OF_REPLICA,
    PAGE,
    RANK,
    TICKET,
    Case,
    of_model,
    of_replica,
    series,
    target,
    waiting,
)

MACHINE_CASES: tuple[Case, ...] = (
    Case(
        "Llama31RankDead",
        "one dies, and an ingress says so; the series is new",
        {of_model("llama31_ranks_lost_total", **RANK, instance=NODE): "_x5 1x10"},
        "7m",
        (OF_MODEL | PAGE | RANK,),
    ),
    Case(
        "Llama31RankDead",
        "half an hour ago",
        {of_model("llama31_ranks_lost_total", **RANK, instance=NODE): "1x40"},
        "35m",
    ),
    Case(
        "Llama31RankDead",
        "half an hour ago, and a gap in the scrapes since",
        {of_model("llama31_ranks_lost_total", **RANK, instance=NODE): "1x20 _x15 1x10"},
        "36m",
    ),
    Case(
        "Llama31RankSilent",
        "hangs inside a collective",
        {of_replica("llama31_rank_silent_seconds", rank="3"): "0 0 5 65 125"},
        "4m",
        (OF_REPLICA | PAGE | {"rank": "3"},),
    ),
    Case("Llama31RankSilent", "a long prefill", {of_replica("llama31_rank_silent_seconds", rank="3"): "0 6 2 9"}, "3m"),
    Case(
        "Llama31RankSilent",
        "one very long step",
        {of_replica("llama31_rank_silent_seconds", rank="3"): "0 0 45 0 0"},
        "2m",
    ),
    Case(
        "Llama31EngineStuck",
        "work, no steps",
        {of_replica("llama31_replica_running"): "17x10", of_replica("llama31_replica_steps_total"): "5000x10"},
        "6m",
        (OF_REPLICA | PAGE,),
    ),
    Case(
        "Llama31EngineStuck",
        "nothing to do",
        {of_replica("llama31_replica_running"): "0x10", of_replica("llama31_replica_steps_total"): "5000x10"},
        "6m",
    ),
    Case(
        "Llama31EngineStuck",
        "at work",
        {of_replica("llama31_replica_running"): "17x10", of_replica("llama31_replica_steps_total"): "0+1500x10"},
        "6m",
    ),
    # Doors.
    Case(
        "Llama31TargetDown",
        "a node is gone",
        {series("up", job="llama31", instance=NODE): "1x5 0x10"},
        "10m",
        ({"job": "llama31", "instance": NODE} | PAGE,),
    ),
    Case(
        "Llama31TargetDown",
        "its pod starts for the first time",
        {series("up", job="llama31", instance=NODE): "0x20"},
        "10m",
    ),
    Case("Llama31TargetDown", "Ray's agent, not ours", {series("up", job="ray", instance=NODE): "1x5 0x20"}, "10m"),
    Case(
        "Llama31IngressDown",
        "no door, and the engines live",
        {series("llama31_ingress_draining", ingress=INGRESS, instance=NODE): "0x5 stale"}
        | {of_model("llama31_replicas_wanted", instance=NODE): "1x5 stale"}
        | {of_replica("llama31_replica_ready", instance="10.0.3.8:9400"): "1x20"},
        "10m",
        (OF_MODEL | PAGE,),
    ),
    Case(
        "Llama31IngressDown",
        "nothing is left",
        {series("llama31_ingress_draining", ingress=INGRESS, instance=NODE): "0x5 stale"}
        | {of_model("llama31_replicas_wanted", instance=NODE): "1x5 stale"}
        | {of_replica("llama31_replica_ready", instance="10.0.3.8:9400"): "1x5 stale"},
        "10m",
        (PAGE,),
    ),
    Case(
        "Llama31IngressDown",
        "another model has its door",
        {series("llama31_ingress_draining", ingress=INGRESS, instance=NODE): "0x20"}
        | {series("llama31_replicas_wanted", model="llama-3.1-8b", instance=NODE): "1x20"}
        | {of_replica("llama31_replica_ready", instance="10.0.3.8:9400"): "1x20"},
        "10m",
        (OF_MODEL | PAGE,),
    ),
    Case(
        "Llama31IngressDown",
        "one drains",
        {series("llama31_ingress_draining", ingress=INGRESS, instance=NODE): "1x20"}
        | {of_model("llama31_replicas_wanted", instance=NODE): "1x20"}
        | {of_replica("llama31_replica_ready", instance="10.0.3.8:9400"): "1x20"},
        "10m",
    ),
    Case(
        "Llama31HeadDown",
        "its pod restarts without end",
        target("llama31", "ingress", "1x20") | target("llama31-head", "head", "1x5 0x15", HEAD),
        "10m",
        ({"release": "models/llama31"} | PAGE,),
    ),
    Case(
        "Llama31HeadDown",
        "its pod is gone",
        target("llama31", "engine", "1x20") | target("llama31-head", "head", "1x5 stale", HEAD),
        "10m",
        ({"release": "models/llama31"} | PAGE,),
    ),
    Case(
        "Llama31HeadDown",
        "it moved",
        target("llama31", "ingress", "1x20")
        | target("llama31-head", "head", "1x5 stale", HEAD)
        | target("llama31-head", "head", "_x7 1x13", "10.0.3.9:8080"),
        "10m",
    ),
    Case(
        "Llama31HeadDown", "on one machine there is none", {series("up", job="llama31", instance=NODE): "1x20"}, "10m"
    ),
    Case(
        "Llama31CertificateExpiresSoon",
        "ten days",
        {CERTIFICATE: f"{10 * DAY_S}x90"},
        "80m",
        (TICKET | {"file": "cert_file"},),
    ),
    Case("Llama31CertificateExpiresSoon", "twenty days", {CERTIFICATE: f"{20 * DAY_S}x90"}, "80m"),
    Case(
        "Llama31CertificateExpiresNow",
        "one day",
        {CERTIFICATE: f"{DAY_S}x20"},
        "10m",
        (PAGE | {"file": "cert_file"},),
    ),
    Case("Llama31CertificateExpiresNow", "ten days", {CERTIFICATE: f"{10 * DAY_S}x20"}, "10m"),
    Case(
        "Llama31ReloadRefused",
        "a broken tenants file",
        {series("llama31_reloads_total", what="tenants", outcome="refused", instance=NODE): "_x5 1x10"},
        "8m",
        (TICKET | {"what": "tenants", "outcome": "refused", "instance": NODE},),
    ),
    Case(
        "Llama31ReloadRefused",
        "a good one",
        {series("llama31_reloads_total", what="tenants", outcome="loaded", instance=NODE): "1 2 3x10"},
        "8m",
    ),
    Case(
        "Llama31WeightsCorrupt",
        "a damaged shard",
        {of_model("llama31_weights_faults_total", fault="corrupt", instance=NODE): "_x5 1x30"},
        "20m",
        (OF_MODEL | TICKET | {"fault": "corrupt", "instance": NODE},),
    ),
    Case(
        "Llama31WeightsCorrupt",
        "mended two hours ago",
        {of_model("llama31_weights_faults_total", fault="corrupt", instance=NODE): "1x200"},
        "180m",
    ),
    Case(
        "Llama31WeightsNotThere",
        "an engine pod's check fails again and again; between two tries it does not wait",
        {waiting("llama31-x7k2p-engine-worker-9hs4d", "weights-check", "CrashLoopBackOff"): "1 1 _ 1 1 1 1 stale 1x10"},
        "12m",
        (TICKET | {"namespace": "models", "pod": "llama31-x7k2p-engine-worker-9hs4d", "container": "weights-check"},),
    ),
    Case(
        "Llama31WeightsNotThere",
        "the hook gave up",
        {series("kube_job_failed", namespace="models", job_name="llama31-weights", condition="true"): "0x3 1x20"},
        "12m",
        (TICKET | {"namespace": "models", "job_name": "llama31-weights"},),
    ),
    Case(
        "Llama31WeightsNotThere",
        "the weights are being fetched, and somebody else's pod fails",
        {
            waiting("llama31-x7k2p-engine-worker-9hs4d", "weights-check", "PodInitializing"): "1x20",
            waiting("other", "init", "CrashLoopBackOff"): "1x20",
            series("kube_job_failed", namespace="models", job_name="llama31-weights", condition="true"): "0x20",
        },
        "12m",
    ),
)
