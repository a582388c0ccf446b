"""What people and JSON readers are shown of an answer."""

from __future__ import annotations

from protos.tandem.v1 import common_pb2, inference_pb2

_FINISH = {
    int(common_pb2.REASON_STOP_TOKEN): "stop",
    int(common_pb2.REASON_STOP_STRING): "stop",
    int(common_pb2.REASON_LENGTH): "length",
}


def finish_reason(reason: common_pb2.ReasonCode.ValueType) -> str:
    """stop, length, or the reason's own name for anything that is no regular end."""
    if reason in _FINISH:
        return _FINISH[reason]
    return common_pb2.ReasonCode.Name(reason).removeprefix("REASON_").lower()


def report_as_dict(report: inference_pb2.RequestReport) -> dict[str, object]:
    """Where the time of one request went, and what was moved for it."""
    document: dict[str, object] = {
        "queue_ms": round(report.queue_ms, 3),
        "ttft_ms": round(report.ttft_ms, 3),
        "mean_itl_ms": round(report.mean_itl_ms, 3),
        "total_ms": round(report.total_ms, 3),
        "prefill_ms": round(report.prefill_ms, 3),
        "prefill_worker": report.prefill_worker,
        "decode_worker": report.decode_worker,
        "cached_tokens": report.cached_tokens,
        "handoff": None,
        "speculation": None,
    }
    if report.HasField("handoff"):
        handoff = report.handoff
        document["handoff"] = {
            "kv_bytes": handoff.kv_bytes,
            "mamba_bytes": handoff.mamba_bytes,
            "mtp_bytes": handoff.mtp_bytes,
            "descriptors": handoff.descriptors,
            "transfer_ms": round(handoff.transfer_ms, 3),
            "hidden_ms": round(handoff.hidden_ms, 3),
            "handoff_ms": round(handoff.handoff_ms, 3),
        }
    if report.HasField("speculation"):
        speculation = report.speculation
        document["speculation"] = {
            "steps": speculation.steps,
            "drafted": list(speculation.drafted),
            "accepted": list(speculation.accepted),
            "acceptance_length": round(acceptance_length(speculation), 3),
        }
    return document


def acceptance_length(speculation: inference_pb2.SpeculationReport) -> float:
    """1 + sum over positions i of the product of the first i conditional acceptances.

    SPEED-Bench's definition: the token that every step gives for free is counted.
    """
    length, survives = 1.0, 1.0
    for drafted, accepted in zip(speculation.drafted, speculation.accepted, strict=True):
        survives *= accepted / drafted if drafted else 0.0
        length += survives
    return length


def report_line(report: inference_pb2.RequestReport) -> str:
    """The same in one line for people."""
    parts = [f"TTFT {report.ttft_ms:.1f} ms", f"mean ITL {report.mean_itl_ms:.2f} ms"]
    if report.HasField("handoff"):
        handoff = report.handoff
        parts += [
            f"{report.prefill_worker} -> {report.decode_worker}",
            f"KV {size(handoff.kv_bytes)}",
            f"Mamba {size(handoff.mamba_bytes)}",
            f"MTP {size(handoff.mtp_bytes)}",
            f"hand-off {handoff.handoff_ms:.1f} ms",
        ]
    else:
        parts.append(report.decode_worker or report.prefill_worker)
    if report.cached_tokens:
        parts.append(f"{report.cached_tokens} prompt tokens cached")
    if report.speculation.drafted:
        parts.append(f"acceptance length {acceptance_length(report.speculation):.2f}")
    return ", ".join(parts)


def size(count: int) -> str:
    """Bytes in the unit that reads best."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
