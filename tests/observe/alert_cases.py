"""Which situations of requests and replicas make each alert fire, and which, close by, do not?"""

from __future__ import annotations

from tests.observe.machine_cases import MACHINE_CASES
from tests.observe.release_cases import RELEASE_CASES
from tests.observe.situations import (
    FAULT_PAGE,
    NODE,
    OF_MODEL,
    OF_REPLICA,
    PAGE,
    TICKET,
    Case,
    crowd,
    first_tokens,
    ledger,
    of_model,
    of_replica,
    queued,
    requests,
    routes,
    waits,
    wanted,
)

CASES: tuple[Case, ...] = (
    # Objectives. 1,000 requests a minute.
    Case(FAULT_PAGE, "a tenth fails for an hour", requests("0+900x70", "0+100x70"), "68m", (OF_MODEL | PAGE,)),
    Case(FAULT_PAGE, "one in two hundred fails, as agreed", requests("0+995x70", "0+5x70"), "68m"),
    Case(FAULT_PAGE, "a bad hour that is over", requests("0+600x60 36000+1000x40", "0+400x60 24000x40"), "98m"),
    Case(FAULT_PAGE, "callers' own mistakes", requests("0+500x70", "0+500x70", "CONTEXT_LENGTH_EXCEEDED"), "68m"),
    Case(
        FAULT_PAGE,
        "all that count fail, among ten times as many refused by their limits",
        requests("0+1x70", "0+9x70")
        | {of_model("llama31_requests_total", method="chat", outcome="RATE_LIMITED"): "0+100x70"},
        "68m",
        (OF_MODEL | PAGE,),
    ),
    Case(FAULT_PAGE, "two of three in a quiet hour", requests("0x60 1x20", "0x60 2x20"), "66m"),
    Case(
        "Llama31FaultBudgetBurnsSlowly",
        "two in a hundred for a day",
        requests("0+980x1500", "0+20x1500"),
        "1490m",
        (OF_MODEL | TICKET,),
    ),
    Case("Llama31FaultBudgetBurnsSlowly", "three in a thousand", requests("0+997x1500", "0+3x1500"), "1490m"),
    Case(
        "Llama31FirstTokenBudgetBurnsFast",
        "nearly all late",
        first_tokens("0+1000x70", "0+200x70"),
        "68m",
        (OF_MODEL | PAGE,),
    ),
    Case("Llama31FirstTokenBudgetBurnsFast", "three in a hundred late", first_tokens("0+1000x70", "0+970x70"), "68m"),
    Case(
        "Llama31FirstTokenBudgetBurnsFast", "one late answer in a quiet hour", first_tokens("0x60 1x20", "0x80"), "66m"
    ),
    Case(
        "Llama31FirstTokenBudgetBurnsSlowly",
        "a fifth late for a day",
        first_tokens("0+1000x1500", "0+800x1500"),
        "1490m",
        (OF_MODEL | TICKET,),
    ),
    Case(
        "Llama31FirstTokenBudgetBurnsSlowly",
        "three in a hundred late",
        first_tokens("0+1000x1500", "0+970x1500"),
        "1490m",
    ),
    # Requests.
    Case(
        "Llama31ErrorsByReason",
        "a tenth is refused for overload",
        requests("0+900x30", "0+100x30", "OVERLOADED"),
        "25m",
        (OF_MODEL | TICKET | {"outcome": "OVERLOADED"},),
    ),
    Case("Llama31ErrorsByReason", "one in a hundred", requests("0+990x30", "0+10x30", "OVERLOADED"), "25m"),
    Case(
        "Llama31StreamsInterrupted",
        "a replica with 40 streams dies; the series is new",
        {of_model("llama31_interrupted_total", cause="engine_failed", instance=NODE): "_x5 40x20"},
        "10m",
        (OF_MODEL | TICKET | {"cause": "engine_failed"},),
    ),
    Case(
        "Llama31StreamsInterrupted",
        "it happened an hour ago",
        {of_model("llama31_interrupted_total", cause="engine_failed", instance=NODE): "_x5 40x90"},
        "80m",
    ),
    Case(
        "Llama31StreamsInterrupted",
        "one ingress counts anew from nothing, another loses 40 streams",
        {
            of_model("llama31_interrupted_total", cause="engine_failed", instance=NODE): "100x19 0x20",
            of_model("llama31_interrupted_total", cause="engine_failed", instance="10.0.3.8:9400"): "0x19 40x20",
        },
        "25m",
        (OF_MODEL | TICKET | {"cause": "engine_failed"},),
    ),
    Case(
        "Llama31StreamsInterrupted",
        "an hour ago, and no scrape for twenty minutes since",
        {of_model("llama31_interrupted_total", cause="engine_failed", instance=NODE): "40x60 _x20 40x20"},
        "82m",
    ),
    Case(
        "Llama31QueueGrows",
        "twelve more a minute",
        queued("0 0 5+12x30", "3x32"),
        "25m",
        (OF_MODEL | TICKET,),
    ),
    Case("Llama31QueueGrows", "long, but it shrinks", queued("400-10x30", "2x30"), "25m"),
    Case("Llama31QueueGrows", "bursts", queued("0 9 0 7 0 8 0 9 0x20", "0x30"), "12m"),
    Case("Llama31LedgerAway", "one ingress of two", ledger("1x5 0x40", "1x45"), "20m", (OF_MODEL | TICKET,)),
    Case("Llama31LedgerAway", "a new head", ledger("1x5 0x6 1x40", "1x5 0x6 1x40"), "20m"),
    Case("Llama31QueueWaitLong", "a tenth waits long", waits("0+900x40", "0+1000x40"), "30m", (OF_MODEL | TICKET,)),
    Case("Llama31QueueWaitLong", "one in a hundred", waits("0+990x40", "0+1000x40"), "30m"),
    # Replicas.
    Case(
        "Llama31NoReplicaReady",
        "the only one left, and took its series along",
        {
            of_replica("llama31_replica_ready"): "1x5 stale",
        }
        | wanted(1),
        "15m",
        (OF_MODEL | PAGE,),
    ),
    Case(
        "Llama31NoReplicaReady",
        "a cold start of 40 minutes",
        {of_replica("llama31_replica_ready"): "0x45"} | wanted(1),
        "40m",
    ),
    Case(
        "Llama31NoReplicaReady",
        "never ready for an hour",
        {of_replica("llama31_replica_ready"): "0x70"} | wanted(1),
        "60m",
        (OF_MODEL | PAGE,),
    ),
    Case(
        "Llama31NoReplicaReady",
        "none is wanted any more",
        {of_replica("llama31_replica_ready"): "1x5 stale"} | wanted(0),
        "15m",
    ),
    Case(
        "Llama31NoReplicaReady",
        "one of two is left",
        {
            of_replica("llama31_replica_ready"): "1x5 stale",
            of_model("llama31_replica_ready", replica="llama31#engine#b"): "1x20",
        }
        | wanted(2),
        "15m",
    ),
    Case(
        "Llama31ReplicasMissing",
        "one of four for 40 minutes",
        crowd(["1x60"]),
        "40m",
        (OF_MODEL | TICKET,),
    ),
    Case("Llama31ReplicasMissing", "all four", crowd(["1x60"] * 4), "40m"),
    Case(
        "Llama31ReplicasMissing",
        "one is replaced within ten minutes",
        crowd(["1x60", "1x60", "1x60", "1x20 stale", "_x22 0x8 1x30"]),
        "45m",
    ),
    Case(
        "Llama31ReplicaNotReady",
        "loads for 40 minutes",
        {of_replica("llama31_replica_ready"): "0x45"},
        "40m",
        (OF_REPLICA | TICKET,),
    ),
    Case("Llama31ReplicaNotReady", "a cold start", {of_replica("llama31_replica_ready"): "0x20 1x30"}, "45m"),
    Case(
        "Llama31ReplicaCrashLoop",
        "five in 15 minutes",
        crowd([f"_x{index * 3} 0x2 stale" for index in range(5)]),
        "22m",
        (OF_MODEL | TICKET,),
    ),
    Case(
        "Llama31ReplicaCrashLoop",
        "each is ready for two minutes, then dies",
        crowd([f"_x{index * 6} 0x2 1x2 stale" for index in range(4)]),
        "28m",
        (OF_MODEL | TICKET,),
    ),
    Case("Llama31ReplicaCrashLoop", "one replaced", crowd([f"_x{index * 3} 0x2 stale" for index in range(2)]), "22m"),
    Case(
        "Llama31ReplicaCrashLoop",
        "a second cluster takes over from four replicas",
        crowd(["1x80 stale"] * 4 + ["_x60 0x9 1x60"] * 4),
        "90m",
    ),
    Case(
        "Llama31PlacementPending",
        "two ingresses say it",
        {
            of_model("llama31_placement_pending", reason="resources", instance=instance): "1x30"
            for instance in ("10.0.3.7:9400", "10.0.3.8:9400")
        },
        "15m",
        (OF_MODEL | TICKET | {"reason": "resources"},),
    ),
    Case(
        "Llama31PlacementPending",
        "for a moment",
        {of_model("llama31_placement_pending", reason="launching", instance=NODE): "0 1 1 0x20"},
        "15m",
    ),
    Case(
        "Llama31KvBelowPlan",
        "one of two replicas has less than planned",
        {
            of_replica("llama31_replica_kv_total_tokens"): "400000x30",
            of_model("llama31_replica_kv_total_tokens", replica="other"): "465000x30",
            of_model("llama31_planned_kv_tokens", instance=NODE): "465000x30",
        },
        "20m",
        (OF_MODEL | TICKET,),
    ),
    Case(
        "Llama31KvBelowPlan",
        "blocks are rounded down",
        {
            of_replica("llama31_replica_kv_total_tokens"): "464992x30",
            of_model("llama31_planned_kv_tokens", instance=NODE): "465000x30",
        },
        "20m",
    ),
    Case("Llama31KvBelowPlan", "no plan", {of_replica("llama31_replica_kv_total_tokens"): "400000x30"}, "20m"),
    Case(
        "Llama31AutoscalerAtItsBound",
        "wants five, may have four",
        {of_model("llama31_autoscaler_wanted"): "5x30", of_model("llama31_autoscaler_target"): "4x30"},
        "20m",
        (OF_MODEL | TICKET,),
    ),
    Case(
        "Llama31AutoscalerAtItsBound",
        "a jump that passes",
        {of_model("llama31_autoscaler_wanted"): "3x5 5x5 3x20", of_model("llama31_autoscaler_target"): "3x5 4x5 3x20"},
        "20m",
    ),
    Case(
        "Llama31KvPressure",
        "96 %",
        {
            of_replica("llama31_replica_kv_used_tokens"): "230400x30",
            of_replica("llama31_replica_kv_total_tokens"): "240000x30",
        },
        "15m",
        (OF_REPLICA | TICKET,),
    ),
    Case(
        "Llama31KvPressure",
        "80 %",
        {
            of_replica("llama31_replica_kv_used_tokens"): "192000x30",
            of_replica("llama31_replica_kv_total_tokens"): "240000x30",
        },
        "15m",
    ),
    Case("Llama31RouterWithoutIndex", "nobody tells", routes("0+10x60", "0+90x60"), "50m", (OF_MODEL | TICKET,)),
    Case("Llama31RouterWithoutIndex", "one ingress of four is new", routes("0+75x60", "0+25x60"), "50m"),
    Case("Llama31RouterWithoutIndex", "a deploy", routes("0x5 0+100x55", "0+90x5 450x55"), "50m"),
    Case("Llama31RouterWithoutIndex", "nothing is cached", routes("0+10x60", "0+90x60", looked_up="0x60"), "50m"),
    *MACHINE_CASES,
    *RELEASE_CASES,
)
