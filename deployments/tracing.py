"""Which spans does a request leave: one at the door, one in the gateway, one a sequence in the replica?

Nothing is done per token: what happened inside a span is told at its end. Built only where `tracing` is configured.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from deployments.config_sections import TracingConfig
from llama31.chat import FinishReason
from llama31.engine import EngineOutput
from llama31.errors import EngineFailed, RequestCancelled

if TYPE_CHECKING:
    from deployments.answer import Answer
    from deployments.choices import Job

# W3C trace context; both keys are the same in gRPC metadata and HTTP headers.
CONTEXT_KEYS = ("traceparent", "tracestate")
_W3C = TraceContextTextMapPropagator()

# A collector that does not answer costs no request anything: spans wait in a bounded queue, then are dropped.
_EXPORT_EVERY_MS = 1000
_EXPORT_LIMIT_S = 5.0
_CLOSE_LIMIT_S = 2.0
_QUEUED_SPANS, _BATCH_SPANS = 4096, 512

Attributes = Mapping[str, str | int | float | Sequence[str]]


class Tracing:
    """The spans of one process, on their way to the collector."""

    def __init__(self, config: TracingConfig, service: str) -> None:
        # Slow to import, and a service without tracing does not need them.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

        instance = f"{socket.gethostname()}:{os.getpid()}"
        resource = {"service.name": service, "service.namespace": "llama31", "service.instance.id": instance}
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(config.sample_ratio),
            resource=Resource.create(resource),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(config.otlp_endpoint, timeout=_EXPORT_LIMIT_S)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=_QUEUED_SPANS,
                schedule_delay_millis=_EXPORT_EVERY_MS,
                max_export_batch_size=_BATCH_SPANS,
            )
        )
        self._tracer = self._provider.get_tracer("llama31")

    @contextmanager
    def door(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> Iterator[Span]:
        """A request at a door. Spans begun in the block belong to it, it to the caller's."""
        with self._tracer.start_as_current_span(
            name,
            _W3C.extract(headers),
            SpanKind.SERVER,
            attributes,
            # An exception's text may quote the request.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except (asyncio.CancelledError, ConnectionError):
                span.set_status(Status(StatusCode.ERROR, RequestCancelled.reason))
                raise

    def answer(self, method: str, model: str) -> AnswerSpan:
        """The gateway's part of the request at the door that this is called from."""
        attributes = {"gen_ai.operation.name": method, "gen_ai.request.model": model}
        return AnswerSpan(self._tracer.start_span(f"gateway {method}", attributes=attributes))

    def sequence(self, context: Mapping[str, str], replica_id: str, attempt: int) -> SequenceSpan | None:
        """A replica's part; None if the ingress follows no trace."""
        if not context:
            return None
        attributes: Attributes = {"llama31.replica": replica_id, "llama31.attempt": attempt}
        return SequenceSpan(
            self._tracer.start_span("replica sequence", _W3C.extract(context), SpanKind.SERVER, attributes)
        )

    async def close(self) -> None:
        """Sends what waits, but does not wait long for a collector that does not answer."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, _CLOSE_LIMIT_S)


class AnswerSpan:
    """From the gateway's first look at a request to its last event."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def admitted(self, job: Job) -> Job:
        """Notes the admission; the job then carries the trace to its replicas."""
        self._span.add_event("admitted", {"llama31.max_output_tokens": job.request.limits.max_output_tokens})
        self._span.set_attributes(
            {
                "gen_ai.response.id": job.request.request_id,
                "gen_ai.usage.input_tokens": len(job.request.prompt_token_ids),
                "gen_ai.request.choice.count": job.options.num_choices,
            }
        )
        if not self._span.is_recording():
            return job
        context: dict[str, str] = {}
        _W3C.inject(context, trace.set_span_in_context(self._span))
        return replace(job, trace=context)

    def end(self, outcome: str, answers: Sequence[Answer]) -> None:
        """`outcome` is a finish reason's name or an error's reason."""
        span = self._span
        now_ns, now_s = time.time_ns(), asyncio.get_running_loop().time()
        if first := min((a.first_token_s for a in answers if a.first_token_s is not None), default=None):
            span.add_event("first token", timestamp=now_ns - round((now_s - first) * 1e9))
        span.set_attribute("gen_ai.usage.output_tokens", sum(answer.output_tokens for answer in answers))
        if outcome in FinishReason.__members__:
            span.set_attribute("gen_ai.response.finish_reasons", [a.finish_reason.name for a in answers])
        _end(span, "" if outcome in FinishReason.__members__ else outcome, now_ns)


class SequenceSpan:
    """From the arrival of a sequence at a replica to the engine's last output of it."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._began_ns = time.time_ns()

    def refused(self, reason: str) -> None:
        """The engine did not take it."""
        _end(self._span, reason, time.time_ns())

    def end(self, last: EngineOutput, output_tokens: int) -> None:
        """The engine's own account of it: queue, prefill, tokens."""
        span = self._span
        if last.prefill_s:
            scheduled_ns = self._began_ns + round(last.queued_s * 1e9)
            span.add_event("scheduled", timestamp=scheduled_ns)
            span.add_event("first token", timestamp=scheduled_ns + round(last.prefill_s * 1e9))
        span.set_attribute("gen_ai.usage.output_tokens", output_tokens)
        span.set_attribute("llama31.cached_prompt_tokens", last.cached_prompt_tokens)
        if last.finish_reason is not None:
            span.set_attribute("gen_ai.response.finish_reasons", [last.finish_reason.name])
        _end(span, EngineFailed.reason if last.error else "", time.time_ns())


def open_tracing(config: TracingConfig | None, service: str) -> Tracing | None:
    """The process's tracing, or None where none is configured."""
    return None if config is None else Tracing(config, service)


def failed(reason: str) -> None:
    """Says why the request at the door of this task failed; does nothing without tracing."""
    trace.get_current_span().set_status(Status(StatusCode.ERROR, reason))


def _end(span: Span, error: str, now_ns: int) -> None:
    span.add_event("finished", timestamp=now_ns)
    if error:
        span.set_status(Status(StatusCode.ERROR, error))
    span.end(now_ns)
