"""A whole cluster: gRPC, commands, traces, and what happens when a worker dies."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from protos.tandem.v1.common_pb2 import REASON_LENGTH
from protos.tandem.v1.inference_pb2 import (
    ClientSampling,
    Finished,
    GenerateRequest,
    GetModelRequest,
    TokenIds,
)
from protos.tandem.v1.inference_pb2_grpc import InferenceStub
from tests.e2e.clusters import Cluster, running_cluster

pytestmark = pytest.mark.e2e

_REPLACED_TIMEOUT_S = 90.0


@pytest.fixture
def stub(cluster: Cluster) -> Iterator[InferenceStub]:
    with grpc.insecure_channel(cluster.grpc) as channel:
        yield InferenceStub(channel)


def _generate(stub: InferenceStub, request: GenerateRequest) -> tuple[list[int], Finished]:
    token_ids: list[int] = []
    for response in stub.Generate(request, timeout=60):
        token_ids.extend(response.delta.token_ids)
    assert response.HasField("finished")
    return token_ids, response.finished


def _request(length: int, max_tokens: int) -> GenerateRequest:
    return GenerateRequest(
        token_ids=TokenIds(ids=[5 + index % 500 for index in range(length)]),
        sampling=ClientSampling(max_tokens=max_tokens, temperature=0, ignore_eos=True),
    )


def test_a_request_is_read_by_one_worker_and_answered_by_another_over_nixl(
    stub: InferenceStub,
) -> None:
    token_ids, finished = _generate(stub, _request(100, 10))
    assert len(token_ids) == finished.completion_tokens == 10
    assert finished.reason == REASON_LENGTH
    report = finished.report
    assert report.prefill_worker.startswith("prefill")
    assert report.decode_worker.startswith("decode")
    assert report.handoff.kv_bytes > 0
    assert report.handoff.mamba_bytes > 0
    assert 0 < report.ttft_ms <= report.total_ms


def test_the_model_can_be_asked_for(stub: InferenceStub) -> None:
    model = stub.GetModel(GetModelRequest())
    assert model.name == "tandem-tiny"
    assert model.vocab_size == 2048


def test_status_shows_both_workers_with_leases(cluster: Cluster) -> None:
    done = cluster.tandem("status", "--json")
    assert done.returncode == 0, done.stderr
    workers = json.loads(done.stdout)["workers"]
    assert sorted(worker["role"] for worker in workers) == ["decode", "prefill"]
    assert all(worker["connected"] and worker["lease_remaining_s"] > 0 for worker in workers)


def test_generate_prints_one_json_document(cluster: Cluster) -> None:
    done = cluster.tandem("generate", "In the beginning", "--max-tokens", "8", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"]


def test_one_trace_spans_all_processes(cluster: Cluster, stub: InferenceStub) -> None:
    request = _request(20, 4)
    request.request_id = "traced"
    _generate(stub, request)
    path = Path(cluster.environment["XDG_STATE_HOME"]) / "trace.jsonl"

    def spans() -> dict[str, dict[str, str]]:
        # The last line may be in the middle of being written.
        whole, _, _ = path.read_text().rpartition("\n")
        found = [json.loads(line) for line in whole.splitlines()]
        mine = [s for s in found if s["attributes"].get("tandem.request_id") == "traced"]
        return {s["name"]: s for s in found if mine and s["trace_id"] == mine[0]["trace_id"]}

    _until(lambda: len(spans()) == 6)
    assert {name: span["service"] for name, span in spans().items()} == {
        "request": "tandem-router",
        "queue": "tandem-router",
        "reserve": "tandem-router",
        "prefill": "tandem-prefill",
        "handoff": "tandem-prefill",
        "decode": "tandem-decode",
    }
    root = spans()["request"]["span_id"]
    children = [span for name, span in spans().items() if name != "request"]
    assert all(span["parent_span_id"] == root for span in children)


def _until(holds: Callable[[], bool]) -> None:
    """Wait for something that another process brings about."""
    deadline_s = time.monotonic() + _REPLACED_TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline_s, "it did not come about"


@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_what_a_worker_killed_in_the_middle_had_goes_on_elsewhere_and_it_is_replaced(
    tmp_path: Path, role: str
) -> None:
    with running_cluster(tmp_path) as cluster, grpc.insecure_channel(cluster.grpc) as channel:
        stub = InferenceStub(channel)
        request = _request(3000, 300)
        undisturbed, _ = _generate(stub, request)
        stream = stub.Generate(request, timeout=180)
        token_ids: list[int] = []
        if role == "decode":
            # The first token comes from prefill, the others from decode.
            while len(token_ids) < 3:
                token_ids.extend(next(iter(stream)).delta.token_ids)
        victim = next(worker for worker in cluster.workers() if worker.role == role)
        os.kill(victim.pid, signal.SIGKILL)
        for response in stream:
            token_ids.extend(response.delta.token_ids)
        assert response.finished.reason == REASON_LENGTH
        assert token_ids == undisturbed
        if role == "decode":
            assert response.finished.report.decode_worker != victim.worker_id

        def replaced() -> bool:
            workers = cluster.workers()
            return any(
                worker.role == role and worker.connected and worker.worker_id != victim.worker_id
                for worker in workers
            )

        _until(replaced)
        again, _ = _generate(stub, request)
        assert again == undisturbed
