"""The report of a request as its client and its trace get it."""

from __future__ import annotations

from protos.tandem.v1.inference_pb2 import RequestReport
from router.core.instructions import Report
from workers.telemetry import Tracing


def report_message(report: Report) -> RequestReport:
    """The message for a report of the core."""
    message = RequestReport(
        queue_ms=report.queue_ms,
        ttft_ms=report.ttft_ms,
        mean_itl_ms=report.mean_itl_ms,
        total_ms=report.total_ms,
        prefill_worker=report.prefill_worker,
        decode_worker=report.decode_worker,
        prefill_ms=report.prefill_ms,
        cached_tokens=report.cached_tokens,
        speculation=report.speculation,
    )
    if report.handoff is not None:
        message.handoff.CopyFrom(report.handoff)
    return message


def record_waits(tracing: Tracing, traceparent: str, report: Report, epoch_ns: int) -> None:
    """Write the spans of what a request waited for in the router, below its own.

    `epoch_ns` is the Unix time at which the report's clock stood at zero.
    """

    def at(moment_s: float) -> int:
        return epoch_ns + int(moment_s * 1e9)

    left_queue_s = report.ended_s if report.placed_s is None else report.placed_s
    queue = tracing.begin("queue", traceparent, start_unix_ns=at(report.arrived_s))
    queue.end(end_unix_ns=at(left_queue_s))
    if report.placed_s is not None and report.reserved_s is not None:
        attributes = {"tandem.decode_worker": report.decode_worker}
        reserve = tracing.begin("reserve", traceparent, attributes, at(report.placed_s))
        reserve.end(end_unix_ns=at(report.reserved_s))
