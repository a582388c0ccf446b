"""OpenTelemetry spans across processes: one trace for a request, whoever works on it.

Spans are written with explicit start and end times, because most stages of a request begin in
one callback and end in another. Without an endpoint or a file every call is a cheap no-op.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Attributes = Mapping[str, str | int | float | bool]

_PROPAGATOR = TraceContextTextMapPropagator()
# A person who follows a trace file should see a request soon after it ended.
_EXPORT_EVERY_MS = 500


@dataclass(frozen=True, slots=True)
class TraceConfig:
    """Where spans go; both None turns tracing off."""

    otlp_endpoint: str | None = None
    trace_file: str | None = None

    @property
    def enabled(self) -> bool:
        return self.otlp_endpoint is not None or self.trace_file is not None


class JsonLinesExporter(SpanExporter):
    """Appends one JSON object for each span; several processes may share the file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Append mode with one write a batch keeps lines of different processes whole.
        self._file = path.open("ab", buffering=0)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        lines = "".join(json.dumps(_span_as_dict(span)) + "\n" for span in spans)
        self._file.write(lines.encode())
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()


def _span_as_dict(span: ReadableSpan) -> dict[str, object]:
    context = span.get_span_context()
    assert context is not None
    return {
        "name": span.name,
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_span_id": f"{span.parent.span_id:016x}" if span.parent else None,
        "service": str(span.resource.attributes.get("service.name", "")),
        "start_unix_ns": span.start_time,
        "end_unix_ns": span.end_time,
        "attributes": dict(span.attributes or {}),
    }


class OpenSpan:
    """A span that has begun. `traceparent` lets others hang theirs below it; empty when off."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: trace.Span | None, traceparent: str) -> None:
        self._span = span
        self.traceparent = traceparent

    def end(self, attributes: Attributes | None = None, end_unix_ns: int | None = None) -> None:
        """Close the span; harmless when called twice."""
        if self._span is not None:
            self._span.set_attributes(attributes or {})
            self._span.end(end_unix_ns)
            self._span = None


_NO_SPAN = OpenSpan(None, "")


class Tracing:
    """Begins spans for one process; `close` flushes what is not yet exported."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("tandem") if provider else None

    @property
    def enabled(self) -> bool:
        return self._tracer is not None

    def begin(
        self,
        name: str,
        parent_traceparent: str = "",
        attributes: Attributes | None = None,
        start_unix_ns: int | None = None,
    ) -> OpenSpan:
        """Begin a span below a W3C `parent_traceparent`, or a new trace when it is empty."""
        if self._tracer is None:
            return _NO_SPAN
        parent = _PROPAGATOR.extract({"traceparent": parent_traceparent})
        span = self._tracer.start_span(
            name, parent, attributes=attributes, start_time=start_unix_ns
        )
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
        return OpenSpan(span, carrier.get("traceparent", ""))

    def close(self) -> None:
        if self._provider is not None:
            self._provider.shutdown()


def start_tracing(service: str, config: TraceConfig) -> Tracing:
    """Tracing of one process that calls itself `service`."""
    if not config.enabled:
        return Tracing(None)
    provider = TracerProvider(
        resource=Resource.create({"service.name": service}), shutdown_on_exit=False
    )
    if config.trace_file is not None:
        exporter: SpanExporter = JsonLinesExporter(Path(config.trace_file))
        provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=_EXPORT_EVERY_MS)
        )
    if config.otlp_endpoint is not None:
        # Its import costs more than the rest of the router's, so only those who trace pay for it.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(config.otlp_endpoint)))
    return Tracing(provider)
