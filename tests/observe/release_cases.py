"""Which alerts would stay silent, or name the wrong service, if two releases of one model mixed in one Prometheus?"""

from __future__ import annotations

from tests.observe.situations import (
    FAULT_PAGE,
    INGRESS,
    NODE,
    OF_MODEL,
    PAGE,
    TICKET,
    Case,
    Series,
    of_model,
    series,
    target,
)

SICK, WELL = {"release": "models/sick"}, {"release": "models/well"}


def _both(name: str, sick: str, well: str, **labels: str) -> Series:
    return {of_model(name, **labels, **SICK): sick, of_model(name, **labels, **WELL): well}


def _answers(outcome: str, sick: str, well: str) -> Series:
    return _both("llama31_requests_total", sick, well, method="chat", outcome=outcome)


RELEASE_CASES: tuple[Case, ...] = (
    Case(
        FAULT_PAGE,
        "one of two releases fails, beside one with a hundred times its load",
        _answers("END_OF_TURN", "0+900x70", "0+100000x70") | _answers("INTERNAL", "0+100x70", "0x70"),
        "68m",
        (OF_MODEL | PAGE | SICK,),
    ),
    Case(
        "Llama31NoReplicaReady",
        "one of two releases has none",
        _both("llama31_replica_ready", "1x10 stale", "1x40", replica="llama31#engine#1", instance=NODE)
        | _both("llama31_replicas_wanted", "1x40", "1x40", instance=NODE),
        "30m",
        (OF_MODEL | PAGE | SICK,),
    ),
    Case(
        "Llama31ReplicasMissing",
        "one release has one too few, the other one more than it needs",
        _both("llama31_replica_ready", "1x60", "1x60", replica="llama31#engine#1", instance=NODE)
        | {of_model("llama31_replica_ready", replica="llama31#engine#2", instance=NODE, **WELL): "1x60"}
        | _both("llama31_replicas_wanted", "2x60", "1x60", instance=NODE),
        "50m",
        (OF_MODEL | TICKET | SICK,),
    ),
    Case(
        "Llama31IngressDown",
        "one of two releases is gone altogether",
        {
            series("llama31_ingress_draining", ingress=INGRESS, instance=NODE, **SICK): "0x5 stale",
            series("llama31_ingress_draining", ingress=INGRESS, instance="10.0.3.9:9400", **WELL): "0x20",
        },
        "10m",
        (PAGE | SICK,),
    ),
    Case(
        "Llama31HeadDown",
        "the other release has its head",
        target("llama31", "ingress", "1x20")
        | {series("up", job="llama31", instance="10.0.3.9:9400", **WELL): "1x20"}
        | {series("up", job="llama31-head", instance="10.0.3.3:8080", **WELL): "1x20"},
        "10m",
        (PAGE | {"release": "models/llama31"},),
    ),
)
