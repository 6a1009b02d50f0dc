"""What do we count at the doors, whatever the model?"""

from __future__ import annotations

from deployments.metric_table.row import Metric

ROWS = (
    Metric(
        "llama31_calls_total",
        "counter",
        ("door", "method", "outcome"),
        "calls",
        "Calls that ended at a door (grpc or http), those included that it refused itself: method or path (none: no "
        "such path, or no request), and OK or the error's reason. A stream of items is one call.",
        "An outcome that grows: look up its reason in docs/errors.md. SLOW_CONSUMER: a client does not read.",
    ),
    Metric(
        "llama31_sent_bytes_total",
        "counter",
        ("door",),
        "bytes",
        "Bytes of answers handed to clients (door: grpc or http), before TLS and framing.",
        "Far from output tokens x 5: clients ask for log-probabilities, or there is much else than answers.",
    ),
    Metric(
        "llama31_unauthenticated_total",
        "counter",
        ("cause",),
        "calls",
        "Calls refused for their credential: missing, multiple or invalid.",
        "invalid grows: a key expired or was taken away while a client still uses it, or somebody guesses.",
    ),
    Metric(
        "llama31_reloads_total",
        "counter",
        ("what", "outcome"),
        "files",
        "Files read again after a change (tenants, tls): loaded, or refused as broken.",
        "refused: the old content stays in force; the ingress log says what is wrong.",
    ),
    Metric(
        "llama31_certificate_expiry_timestamp_seconds",
        "gauge",
        ("file",),
        "seconds",
        "When a certificate in force ends (Unix time; file: cert_file or client_ca_file, the first to end).",
        "Soon: renew it; a replaced file is read at the next handshake.",
        across="min",
    ),
    Metric(
        "llama31_ingress_draining",
        "gauge",
        ("ingress",),
        "1 or 0",
        "Whether this ingress process refuses new requests and lets the open ones finish.",
        "No series at all: no ingress process answers. 1 for longer than ingress.drain_s: look at the ingress log.",
    ),
    Metric(
        "llama31_build_info",
        "gauge",
        ("version", "ray", "vllm"),
        "1",
        "Versions in use; always 1.",
        "Two versions at once outside of an upgrade: a node has an old image.",
        across="max",
    ),
)
