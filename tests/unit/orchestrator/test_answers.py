"""What people are shown of an answer."""

from __future__ import annotations

import pytest

from orchestrator.answers import finish_reason, report_as_dict, report_line, size
from protos.tandem.v1 import common_pb2, inference_pb2


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        (common_pb2.REASON_STOP_TOKEN, "stop"),
        (common_pb2.REASON_STOP_STRING, "stop"),
        (common_pb2.REASON_LENGTH, "length"),
        (common_pb2.REASON_WORKER_LOST, "worker_lost"),
    ],
)
def test_the_finish_reason_is_what_other_servers_say(
    reason: common_pb2.ReasonCode.ValueType, shown: str
) -> None:
    assert finish_reason(reason) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (3 * 2**20, "3.0 MiB"),
        (2**40, "1024.0 GiB"),
    ],
)
def test_sizes_are_shown_in_the_unit_that_reads_best(count: int, shown: str) -> None:
    assert size(count) == shown


def test_a_report_without_a_hand_off_says_so() -> None:
    report = inference_pb2.RequestReport(ttft_ms=1.5, mean_itl_ms=2.0, decode_worker="decode-1")
    assert report_as_dict(report)["handoff"] is None
    assert report_line(report) == "TTFT 1.5 ms, mean ITL 2.00 ms, decode-1"


def test_a_report_with_a_hand_off_names_both_workers_and_the_bytes() -> None:
    report = inference_pb2.RequestReport(
        prefill_worker="p", decode_worker="d", handoff=inference_pb2.HandoffReport(kv_bytes=2048)
    )
    line = report_line(report)
    assert "p -> d" in line
    assert "KV 2.0 KiB" in line
