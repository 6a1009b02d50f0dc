"""Which numbers do we export, in which unit, and what should an operator do about them?

One table. Every process of a node writes into one directory (Prometheus' multiprocess mode), and
whichever process holds the node's metrics port serves them all; vLLM's own series come along.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram, multiprocess
from prometheus_client.registry import Collector

Kind = Literal["counter", "gauge", "histogram"]

PORT_RETRY_S = 2.0

_LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0, 60.0, 120.0)
_TOKEN_GAP_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One row: what it is, and what to do when it looks wrong."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    unit: str
    meaning: str
    action: str
    buckets: tuple[float, ...] = ()


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
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
                "llama31_inter_token_seconds",
                "histogram",
                ("model",),
                "seconds",
                "Time between two tokens of one answer, as the ingress receives them.",
                "High: batches are large or ranks are slow; compare replicas.",
                _TOKEN_GAP_BUCKETS_S,
            ),
            Metric(
                "llama31_prompt_tokens_total",
                "counter",
                ("model",),
                "tokens",
                "Prompt tokens of admitted requests.",
                "For capacity planning.",
            ),
            Metric(
                "llama31_output_tokens_total",
                "counter",
                ("model",),
                "tokens",
                "Output tokens given to clients.",
                "For capacity planning.",
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
                "llama31_language_total",
                "counter",
                ("language", "verdict"),
                "requests",
                "Language of prompts (ISO 639-1, unknown if unsure) and what the policy said; counted unless off.",
                "Many warned or refused in one language: a tenant needs another model, or a milder mode.",
            ),
            Metric(
                "llama31_replica_ready",
                "gauge",
                ("model", "replica"),
                "1 or 0",
                "Whether the replica takes requests.",
                "0 for longer than a cold start: read the replica's log in the Ray dashboard.",
            ),
            Metric(
                "llama31_replica_running",
                "gauge",
                ("model", "replica"),
                "sequences",
                "Sequences that take part in the engine's steps.",
                "At the engine's max_running: add replicas.",
            ),
            Metric(
                "llama31_replica_waiting",
                "gauge",
                ("model", "replica"),
                "sequences",
                "Sequences that wait for room in the engine.",
                "Above 0 for long: add replicas, or KV room (see kv use).",
            ),
            Metric(
                "llama31_replica_kv_used_tokens",
                "gauge",
                ("model", "replica"),
                "tokens",
                "KV cache held by live sequences.",
                "Near the total: long contexts fill the replica; expect preemption.",
            ),
            Metric(
                "llama31_replica_kv_total_tokens",
                "gauge",
                ("model", "replica"),
                "tokens",
                "KV cache there is.",
                "Compare with 'llama31 serve --check'.",
            ),
            Metric(
                "llama31_replica_steps_total",
                "gauge",
                ("model", "replica"),
                "steps",
                "Engine steps since the replica started (falls to 0 when it is replaced).",
                "Stands still while running > 0: the engine hangs.",
            ),
        )
    }
)


class Metrics:
    """The instruments of this process, made from the table."""

    def __init__(self) -> None:
        self._instruments: dict[str, Any] = {name: _instrument(metric) for name, metric in METRICS.items()}

    def child(self, name: str, **labels: str) -> Any:
        """One series of prometheus_client, for what is counted too often to be looked up each time."""
        return self._instruments[name].labels(**labels)

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Counts."""
        self._instruments[name].labels(**labels).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""
        self._instruments[name].labels(**labels).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Adds an observation to a histogram."""
        self._instruments[name].labels(**labels).observe(value)


class NodeExporter:
    """Serves the node's directory on the node's port, or waits to take over from who does."""

    def __init__(self, directory: Path, host: str, port: int) -> None:
        self._directory = directory
        self._host = host
        self._port = port

    async def run(self) -> None:
        """Holds the port until cancelled; port 0 exports nothing."""
        if self._port == 0:
            return
        registry = prometheus_client.CollectorRegistry()
        registry.register(_LiveProcesses(self._directory))
        while True:
            with contextlib.suppress(OSError):
                server, thread = prometheus_client.start_http_server(self._port, self._host, registry)
                break
            await asyncio.sleep(PORT_RETRY_S)
        try:
            await asyncio.Event().wait()
        finally:
            server.shutdown()
            server.server_close()
            await asyncio.to_thread(thread.join)


class _LiveProcesses(Collector):
    """The multiprocess collector, without gauges of processes that were killed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[prometheus_client.Metric]:
        """Called at every scrape."""
        for file in self._directory.glob("gauge_live*_*.db"):
            pid = int(file.stem.rpartition("_")[2])
            if not Path(f"/proc/{pid}").exists():
                multiprocess.mark_process_dead(pid, str(self._directory))
        registry = prometheus_client.CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, str(self._directory))
        return registry.collect()


def _instrument(metric: Metric) -> Counter | Gauge | Histogram:
    if metric.kind == "counter":
        return Counter(metric.name, metric.meaning, metric.labels)
    if metric.kind == "gauge":
        return Gauge(metric.name, metric.meaning, metric.labels, multiprocess_mode="livesum")
    return Histogram(metric.name, metric.meaning, metric.labels, buckets=metric.buckets)
