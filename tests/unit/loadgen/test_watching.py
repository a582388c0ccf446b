"""What clusters say of themselves, over gRPC and as metrics."""

from __future__ import annotations

import pytest

from loadgen.watching import ClusterSample, of_metrics, of_status
from protos.tandem.v1 import admin_pb2

TANDEM = """# HELP tandem_queue_requests Requests that wait for workers.
# TYPE tandem_queue_requests gauge
tandem_queue_requests 3
tandem_running_requests 7
tandem_workers{role="prefill"} 1
tandem_workers{role="decode"} 2
tandem_idle_share{role="prefill"} 0.25
tandem_idle_share{role="decode"} 0.5
tandem_matched_ratio 0.8
tandem_ttft_seconds_bucket{le="+Inf"} 9
"""
VLLM = """vllm:num_requests_running{engine="0",model_name="m"} 4.0
vllm:num_requests_running{engine="1",model_name="m"} 5.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
"""


def test_metrics_of_a_router_are_read() -> None:
    assert of_metrics(TANDEM) == ClusterSample(3, 7, 1, 2, 0.75, 0.5, 0.8)


def test_metrics_of_vllm_are_summed_over_its_engines() -> None:
    assert of_metrics(VLLM) == ClusterSample(1, 9)


@pytest.mark.parametrize("text", ["", "<html>not found</html>", "process_cpu_seconds_total 7\n"])
def test_a_page_of_something_else_tells_nothing(text: str) -> None:
    assert of_metrics(text) is None


def test_workers_that_are_lost_or_draining_do_not_serve() -> None:
    workers = [
        admin_pb2.WorkerStatus(role="prefill", connected=True, duty="serving"),
        admin_pb2.WorkerStatus(role="decode", connected=True, duty="serving"),
        admin_pb2.WorkerStatus(role="decode", connected=False, duty="serving"),
        admin_pb2.WorkerStatus(role="decode", connected=True, duty="draining"),
    ]
    matching = admin_pb2.Matching(prefill_idle_share=1.0, decode_idle_share=0.25)
    status = admin_pb2.GetStatusResponse(
        queued_requests=2, running_requests=5, workers=workers, matching=matching
    )
    assert of_status(status) == ClusterSample(2, 5, 1, 1, 0.0, 0.75, None)
