"""Which board shows the whole fleet at work?"""

from __future__ import annotations

from deployments.observe.board import (
    GPUS_USED,
    NARROW,
    Board,
    Panel,
    Query,
    Row,
    quantile,
    quantiles,
    rate,
)
from deployments.observe.objectives import FAULT_BUDGET, FAULTY, SLOW_START_BUDGET


def _stat(title: str, meaning: str, unit: str, expr: str, legend: str = "") -> Panel:
    return Panel(title, meaning, unit, (Query(expr, legend),), "stat", NARROW)


NOW = Row(
    "Now",
    (
        _stat("Replicas ready", "Replicas that take requests.", "short", "sum(llama31_replica_ready)"),
        _stat("Requests in flight", "At all ingresses.", "short", "sum(llama31_streams_open)"),
        _stat("Requests", "That ended, per second.", "reqps", "sum(rate(llama31_requests_total[$__rate_interval]))"),
        _stat(
            "Output", "Tokens given to clients.", "short", "sum(rate(llama31_output_tokens_total[$__rate_interval]))"
        ),
        _stat(
            "Requests that fail",
            "Share of requests that failed through the service, in five minutes.",
            "percentunit",
            "max(release_model:llama31_faults:ratio_rate5m)",
        ),
        _stat("First token", "p95 of the time to the first token.", "s", quantile(0.95, "llama31_ttft_seconds")),
        _stat("GPUs used", "Of those that the cluster has.", "short", GPUS_USED),
        _stat(
            "Alerts",
            "That fire now.",
            "short",
            'count(count by (alertname) (ALERTS{alertstate="firing"})) or vector(0)',
        ),
    ),
)

FLEET = Board(
    "llama31-fleet",
    "Llama 3.1: fleet overview",
    "Is the service well, and if not, where does it hurt?",
    (
        NOW,
        Row(
            "Requests",
            (
                Panel(
                    "Requests by outcome",
                    "Finish reasons and error reasons.",
                    "reqps",
                    (Query(rate("llama31_requests_total", "outcome"), "{{outcome}}"),),
                    "areas",
                ),
                Panel(
                    "Errors by reason",
                    "Requests that failed through the service; docs/errors.md explains each reason.",
                    "reqps",
                    (Query(f"{rate('llama31_requests_total', 'outcome', FAULTY)} or vector(0)", "{{outcome}}"),),
                ),
                Panel(
                    "Error budget burnt",
                    "How many times faster than agreed: at 1 the month's budget lasts the month.",
                    "short",
                    (
                        Query(
                            f"release_model:llama31_faults:ratio_rate1h / {FAULT_BUDGET}",
                            "{{release}} {{model}} failed, 1 h",
                        ),
                        Query(
                            f"release_model:llama31_slow_starts:ratio_rate1h / {SLOW_START_BUDGET}",
                            "{{release}} {{model}} late first token, 1 h",
                        ),
                    ),
                ),
                Panel(
                    "Time to first token",
                    "From the request's arrival at the ingress.",
                    "s",
                    quantiles("llama31_ttft_seconds"),
                ),
                Panel(
                    "Time between tokens",
                    "As the ingress receives them.",
                    "s",
                    quantiles("llama31_inter_token_seconds"),
                ),
                Panel(
                    "Queue wait",
                    "From arrival until an engine has the request.",
                    "s",
                    quantiles("llama31_queue_wait_seconds"),
                ),
                Panel(
                    "Routing",
                    "Sequences by why their replica was chosen; docs/metrics.md explains each reason.",
                    "reqps",
                    (Query(rate("llama31_routes_total", "reason"), "{{reason}}"),),
                    "areas",
                ),
                Panel(
                    "First token, real to predicted",
                    "Median and p95 of the time to the first token divided by the router's prediction.",
                    "short",
                    (
                        Query(quantile(0.5, "llama31_ttft_real_to_predicted"), "median"),
                        Query(quantile(0.95, "llama31_ttft_real_to_predicted"), "p95"),
                    ),
                ),
            ),
        ),
        Row(
            "Admission",
            (
                Panel(
                    "Waiting for room",
                    "Requests at the ingresses, by priority; they wait there, where tenants get their shares.",
                    "short",
                    (Query("sum by (priority) (llama31_admission_waiting)", "{{priority}}"),),
                    "areas",
                ),
                Panel(
                    "Wait for room",
                    "p95 of those that were let in, by priority.",
                    "s",
                    (Query(quantile(0.95, "llama31_admission_wait_seconds", by="priority"), "{{priority}}"),),
                ),
                Panel(
                    "Early refusals",
                    "Requests that no engine was given, by reason; docs/admission.md explains each.",
                    "reqps",
                    (Query(f"{rate('llama31_admission_refused_total', 'reason')} or vector(0)", "{{reason}}"),),
                ),
                Panel(
                    "Room leased",
                    "Share of the fleet's room that the ingresses may fill together, and the least of those that "
                    "reach the ledger (0: one does not).",
                    "short",
                    (
                        Query("sum by (release, model) (llama31_room_share)", "{{release}} {{model}} leased"),
                        Query("min by (release, model) (llama31_ledger_answers)", "{{release}} {{model}} ledger"),
                    ),
                ),
            ),
        ),
        Row(
            "Replicas",
            (
                Panel(
                    "Replicas ready",
                    "By model; more are wanted than ready: some start, or find no GPUs.",
                    "short",
                    (
                        Query("sum by (release, model) (llama31_replica_ready)", "{{release}} {{model}} ready"),
                        Query("max by (release, model) (llama31_replicas_wanted)", "{{release}} {{model}} wanted"),
                    ),
                ),
                Panel(
                    "Running and waiting",
                    "Sequences in the engines' steps, and those that wait for room.",
                    "short",
                    (
                        Query("sum(llama31_replica_running)", "running"),
                        Query("sum(llama31_replica_waiting)", "waiting"),
                    ),
                ),
                Panel(
                    "KV cache in use",
                    "Share, for each replica.",
                    "percentunit",
                    (Query("llama31_replica_kv_used_tokens / llama31_replica_kv_total_tokens", "{{replica}}"),),
                ),
                Panel(
                    "GPUs",
                    "Of all Ray clusters; logical ones on a stand-in.",
                    "short",
                    (Query("sum by (state) (max by (state, release, ray_io_cluster) (llama31_gpus))", "{{state}}"),),
                    "areas",
                ),
                Panel(
                    "Autoscaler",
                    "Replicas: what arrives in replicas' worth of work, wanted, and asked for within bounds and room.",
                    "short",
                    (
                        Query("max by (model) (llama31_autoscaler_load)", "{{model}} load"),
                        Query("max by (model) (llama31_autoscaler_wanted)", "{{model}} wanted"),
                        Query("max by (model) (llama31_autoscaler_target)", "{{model}} target"),
                    ),
                ),
                Panel(
                    "Placement pending",
                    "Replicas that wait for GPUs, and why.",
                    "short",
                    (
                        Query(
                            "max by (release, model, reason) (llama31_placement_pending) or vector(0)",
                            "{{release}} {{model}} {{reason}}",
                        ),
                    ),
                ),
                Panel(
                    "Interrupted streams",
                    "Streams that lost their replica, by cause.",
                    "reqps",
                    (Query(f"{rate('llama31_interrupted_total', 'cause')} or vector(0)", "{{cause}}"),),
                ),
            ),
        ),
        Row(
            "Doors",
            (
                Panel(
                    "Bytes sent",
                    "To clients, by door.",
                    "Bps",
                    (Query(rate("llama31_sent_bytes_total", "door"), "{{door}}"),),
                ),
                Panel(
                    "Refused credentials",
                    "Calls without a valid key.",
                    "reqps",
                    (Query(f"{rate('llama31_unauthenticated_total', 'cause')} or vector(0)", "{{cause}}"),),
                ),
                Panel(
                    "Certificates",
                    "Time until they expire.",
                    "s",
                    (
                        Query(
                            "min by (release, file) (llama31_certificate_expiry_timestamp_seconds) - time()",
                            "{{release}} {{file}}",
                        ),
                    ),
                ),
                Panel(
                    "Draining ingresses",
                    "They finish their streams and take no new requests.",
                    "short",
                    (Query("sum(llama31_ingress_draining)", "draining"),),
                ),
                Panel(
                    "Files read again",
                    "Tenants and TLS files that changed: loaded, or refused as broken.",
                    "short",
                    (
                        Query(
                            "sum by (what, outcome) (increase(llama31_reloads_total[$__range])) or vector(0)",
                            "{{what}} {{outcome}}",
                        ),
                    ),
                ),
                Panel(
                    "Versions",
                    "Of the processes that run; two rows are an upgrade that goes on.",
                    "short",
                    (
                        Query(
                            "sum by (version, ray, vllm) (llama31_build_info)", "{{version}} ray {{ray}} vllm {{vllm}}"
                        ),
                    ),
                    "table",
                ),
            ),
        ),
        # By max: an agent's series may come twice, with our exporter's and on its own port.
        Row(
            "Ray",
            (
                Panel(
                    "CPU of the nodes",
                    "As Ray's agents measure it.",
                    "percent",
                    (Query("max by (ip) (ray_node_cpu_utilization)", "{{ip}}"),),
                ),
                Panel(
                    "Memory of the nodes",
                    "Share in use; Ray kills workers near 95 %.",
                    "percentunit",
                    (Query("max by (ip) (ray_node_mem_used / ray_node_mem_total)", "{{ip}}"),),
                ),
                Panel(
                    "Serve's replicas",
                    "Processes that Serve holds for healthy: ingresses and engine replicas.",
                    "short",
                    (
                        Query(
                            "sum by (deployment) (max by (deployment, replica) (ray_serve_deployment_replica_healthy))",
                            "{{deployment}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
