"""How is a situation told to promtool? Series as our exporters show them, one sample a minute."""

from __future__ import annotations

from dataclasses import dataclass

Series = dict[str, str]
Labels = dict[str, str]

MODEL = "llama-3.1-405b-instruct"
REPLICA = "llama31#engine#q7x2mzpk"
FAULT_PAGE = "Llama31FaultBudgetBurnsFast"


@dataclass(frozen=True, slots=True)
class Case:
    """One situation, when it is looked at, and the labels of each alert of that name that should fire then."""

    alert: str
    situation: str
    series: Series
    at: str
    fires: tuple[Labels, ...] = ()


def of_model(name: str, **labels: str) -> str:
    return series(name, model=MODEL, **labels)


def of_replica(name: str, **labels: str) -> str:
    return series(name, model=MODEL, replica=REPLICA, **labels)


def series(name: str, **labels: str) -> str:
    pairs = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{pairs}}}" if pairs else name


def requests(good: str, lost: str, outcome: str = "STREAM_INTERRUPTED") -> Series:
    return {
        of_model("llama31_requests_total", method="chat", outcome="END_OF_TURN"): good,
        of_model("llama31_requests_total", method="chat", outcome=outcome): lost,
    }


def first_tokens(every: str, in_time: str) -> Series:
    return {
        of_model("llama31_ttft_seconds_count"): every,
        of_model("llama31_ttft_seconds_bucket", le="3.0"): in_time,
        of_model("llama31_ttft_seconds_bucket", le="+Inf"): every,
    }


def routes(known: str, blind: str, looked_up: str = "0+9000x60") -> Series:
    return {
        of_model("llama31_routes_total", reason="prefix"): known,
        of_model("llama31_routes_total", reason="no_index"): blind,
        of_replica("llama31_replica_prefix_query_tokens_total"): looked_up,
    }


def queued(interactive: str, batch: str) -> Series:
    return {
        of_model("llama31_admission_waiting", priority="interactive", instance=NODE): interactive,
        of_model("llama31_admission_waiting", priority="batch", instance=NODE): batch,
    }


def ledger(here: str, there: str) -> Series:
    return {
        of_model("llama31_ledger_answers", instance=NODE): here,
        of_model("llama31_ledger_answers", instance="10.0.3.8:9400"): there,
    }


def waits(short: str, long: str) -> Series:
    return {
        of_model("llama31_queue_wait_seconds_bucket", le="0.01"): short,
        of_model("llama31_queue_wait_seconds_bucket", le="30.0"): long,
        of_model("llama31_queue_wait_seconds_bucket", le="60.0"): long,
        of_model("llama31_queue_wait_seconds_bucket", le="+Inf"): long,
    }


def crowd(lives: list[str]) -> Series:
    """Replicas with the series of each, from its ingress and its engines."""
    return {
        of_model("llama31_replica_ready", replica=f"llama31#engine#{index}", instance=NODE): life
        for index, life in enumerate(lives)
    } | wanted(4)


def wanted(replicas: int, minutes: int = 120) -> Series:
    """Two ingresses say so, each on a node of its own."""
    return {
        of_model("llama31_replicas_wanted", instance=instance): f"{replicas}x{minutes}"
        for instance in ("10.0.3.8:9400", "10.0.3.9:9400")
    }


def target(job: str, component: str, values: str, instance: str = "10.0.3.7:9400") -> Series:
    """A target of the chart's PodMonitor."""
    labels = {
        "release": "models/llama31",
        "app_kubernetes_io_component": component,
        "ray_io_cluster": "llama31-x7k2p",
        "namespace": "models",
    }
    return {series("up", job=job, instance=instance, **labels): values}


def waiting(pod: str, container: str, reason: str) -> str:
    return series(
        "kube_pod_init_container_status_waiting_reason", namespace="models", pod=pod, container=container, reason=reason
    )


PAGE, TICKET = {"severity": "page"}, {"severity": "ticket"}
OF_MODEL = {"model": MODEL}
OF_REPLICA = OF_MODEL | {"replica": REPLICA}
RANK = {"rank": "9", "stage": "1", "node": "b41c77e0"}
INGRESS = "8f0c2d4e"
HEAD = "10.0.3.2:8080"
CERTIFICATE = series("llama31_certificate_expiry_timestamp_seconds", file="cert_file", instance="10.0.3.7:9400")
NODE = "10.0.3.7:9400"
DAY_S = 86_400
