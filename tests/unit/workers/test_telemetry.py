"""Spans of one request form one trace, and tracing that is off costs nothing."""

from __future__ import annotations

import json
from pathlib import Path

from workers.telemetry import TraceConfig, start_tracing


def test_without_a_destination_spans_are_nothing() -> None:
    tracing = start_tracing("router", TraceConfig())
    span = tracing.begin("request")
    assert not tracing.enabled
    assert span.traceparent == ""
    span.end()
    tracing.close()


def test_spans_of_several_processes_share_a_trace_and_name_their_parents(tmp_path: Path) -> None:
    config = TraceConfig(trace_file=str(tmp_path / "trace.jsonl"))
    router, worker = start_tracing("router", config), start_tracing("worker", config)
    request = router.begin("request", attributes={"tandem.request_id": "a"})
    decode = worker.begin("decode", request.traceparent)
    decode.end({"tandem.output_tokens": 3})
    request.end()
    router.close()
    worker.close()
    lines = (tmp_path / "trace.jsonl").read_text().splitlines()
    spans = {span["name"]: span for span in map(json.loads, lines)}
    assert spans["decode"]["trace_id"] == spans["request"]["trace_id"]
    assert spans["decode"]["parent_span_id"] == spans["request"]["span_id"]
    assert spans["request"]["parent_span_id"] is None
    assert spans["decode"]["service"] == "worker"
    assert spans["decode"]["attributes"] == {"tandem.output_tokens": 3}
    assert spans["decode"]["end_unix_ns"] >= spans["decode"]["start_unix_ns"]


def test_a_span_may_be_ended_twice_and_takes_explicit_times(tmp_path: Path) -> None:
    tracing = start_tracing("router", TraceConfig(trace_file=str(tmp_path / "trace.jsonl")))
    span = tracing.begin("queue", start_unix_ns=1_000)
    span.end(end_unix_ns=2_000)
    span.end(end_unix_ns=9_000)
    tracing.close()
    (line,) = (tmp_path / "trace.jsonl").read_text().splitlines()
    assert (json.loads(line)["start_unix_ns"], json.loads(line)["end_unix_ns"]) == (1_000, 2_000)
