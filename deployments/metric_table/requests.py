"""What do we count of requests and of tenants?"""

from __future__ import annotations

from deployments.metric_table.row import Metric

_LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0, 60.0, 120.0)
_TOKEN_GAP_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

ROWS = (
    Metric(
        "llama31_requests_total",
        "counter",
        ("model", "method", "outcome"),
        "requests",
        "Requests that ended, by finish reason or error reason.",
        "An error outcome that grows: look up its reason in docs/errors.md.",
    ),
    Metric(
        "llama31_streams_open",
        "gauge",
        ("model",),
        "requests",
        "Requests in flight at this ingress.",
        "Grows without end: replicas are too slow or too few.",
    ),
    Metric(
        "llama31_ttft_seconds",
        "histogram",
        ("model",),
        "seconds",
        "From the request's arrival at the ingress to its first token.",
        "High with waiting > 0: add replicas. High without: prompts are long, compare prefill time.",
        _LATENCY_BUCKETS_S,
    ),
    Metric(
        "llama31_queue_wait_seconds",
        "histogram",
        ("model",),
        "seconds",
        "The part of the time to the first token in which the engine did not work on the prompt yet.",
        "High: the engine is full (replica_waiting, kv use) or the ingress is busy; add replicas.",
        _LATENCY_BUCKETS_S,
    ),
    Metric(
        "llama31_inter_token_seconds",
        "histogram",
        ("model",),
        "seconds",
        "Time between two messages of one answer, divided by the tokens of the second, as the ingress receives them: "
        "one observation a message, however many tokens it brings.",
        "High: batches are large or ranks are slow; compare replicas.",
        _TOKEN_GAP_BUCKETS_S,
    ),
    Metric(
        "llama31_prompt_tokens_total",
        "counter",
        ("model",),
        "tokens",
        "Prompt tokens of requests that were answered to the end.",
        "For capacity planning.",
    ),
    Metric(
        "llama31_output_tokens_total",
        "counter",
        ("model",),
        "tokens",
        "Output tokens of requests that were answered to the end.",
        "For capacity planning.",
    ),
    Metric(
        "llama31_interrupted_total",
        "counter",
        ("model", "cause"),
        "sequences",
        "Times that a sequence lost its replica, by cause: connection_lost, closed, silent, gap, engine_failed, "
        "draining. It goes on elsewhere, unless requests_total counts STREAM_INTERRUPTED.",
        "engine_failed: read the replica's log. silent or connection_lost: look at its node and network.",
    ),
    Metric(
        "llama31_continuation_gap_seconds",
        "histogram",
        ("model",),
        "seconds",
        "From the last token of a lost replica to the first one of the replica that took the sequence over.",
        "High: no other replica was ready (replicas ready, cold start), or those left are full.",
        _LATENCY_BUCKETS_S,
    ),
    Metric(
        "llama31_tenant_requests_total",
        "counter",
        ("tenant", "outcome"),
        "requests",
        "What the tenants' limits said: admitted, or which limit refused (requests, tokens, concurrency).",
        "Refusals of one tenant that grow: talk to it, or raise its limit in the tenants file.",
    ),
    Metric(
        "llama31_tenant_tokens_total",
        "counter",
        ("tenant",),
        "tokens",
        "Prompt and output tokens charged to the tenant.",
        "For billing and capacity planning.",
    ),
    Metric(
        "llama31_tenant_energy_joules_total",
        "counter",
        ("tenant", "source"),
        "joules",
        "Accelerator energy charged to the tenant's requests, measured or modelled.",
        "For billing; what the energy of all tenants lacks of llama31_energy_joules_total was spent idle.",
    ),
    Metric(
        "llama31_tenant_co2e_grams_total",
        "counter",
        ("tenant", "source"),
        "grams",
        "CO2 equivalent of that energy, by the PUE and grid factor of the configuration.",
        "For reports; docs/energy.md says what it holds.",
    ),
    Metric(
        "llama31_language_total",
        "counter",
        ("language", "verdict"),
        "requests",
        "Language of prompts (ISO 639-1, unknown if unsure) and what the policy said; counted unless off.",
        "Many warned or refused in one language: a tenant needs another model, or a milder mode.",
    ),
)
