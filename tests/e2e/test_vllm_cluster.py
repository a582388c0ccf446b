"""A whole cluster of vLLM workers: commands, the `openai` client, a drain, and workers killed.

One cluster for all tests, in this order: an engine takes half a minute of processor time to start.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import openai
import pytest

from orchestrator.bench.vllm.model import write_dense_model
from protos.tandem.v1.admin_pb2 import WorkerStatus
from protos.tandem.v1.common_pb2 import REASON_LENGTH
from protos.tandem.v1.inference_pb2 import ClientSampling, Finished, GenerateRequest, TokenIds
from protos.tandem.v1.inference_pb2_grpc import InferenceStub
from tests.e2e.clusters import Cluster, running_cluster
from tests.e2e.conftest import TINY

VLLM_PYTHON = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
_NAME = "dense"
_PATIENCE_S = 300.0
_PROMPT = "In the beginning there was a module, and the module had a name and a list of functions."

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.vllm,
    pytest.mark.skipif(
        not VLLM_PYTHON.exists(), reason="`make vllm-env` builds an environment with vLLM"
    ),
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A prefill and two decode workers."""
    folder = tmp_path_factory.mktemp("vllm")
    write_dense_model(folder / "model", TINY)
    pool: dict[str, object] = {
        "engine": "vllm",
        "vllm": {"python": str(VLLM_PYTHON), "args": ["--enforce-eager"]},
        "kv_tokens": 4096,
        "max_requests": 8,
    }
    spec = folder / "cluster.yaml"
    # Each JSON document is a YAML document.
    model = {"path": str(folder / "model"), "name": _NAME}
    decode = pool | {"workers": {"min": 2}}
    spec.write_text(json.dumps({"model": model, "prefill": pool, "decode": decode}))
    with running_cluster(folder, "-f", str(spec)) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Workers that a test kills are replaced; the cluster says itself what it left, at its end."""


@pytest.fixture
def stub(pair: Cluster) -> Iterator[InferenceStub]:
    with grpc.insecure_channel(pair.grpc) as channel:
        yield InferenceStub(channel)


def _request(salt: int, max_tokens: int) -> GenerateRequest:
    """Of another `salt`, a prompt of which nothing is cached."""
    return GenerateRequest(
        token_ids=TokenIds(ids=[5 + (salt + 7 * index) % 500 for index in range(100)]),
        sampling=ClientSampling(max_tokens=max_tokens, temperature=0, ignore_eos=True),
    )


def _generate(stub: InferenceStub, request: GenerateRequest) -> tuple[list[int], Finished]:
    token_ids: list[int] = []
    for response in stub.Generate(request, timeout=_PATIENCE_S):
        token_ids.extend(response.delta.token_ids)
    assert response.finished.reason == REASON_LENGTH
    return token_ids, response.finished


def _worker(cluster: Cluster, role: str, *, busy: bool = False) -> WorkerStatus:
    """One that serves, and has a request if it is to be busy."""
    return next(
        one
        for one in cluster.workers()
        if one.role == role and one.connected and (one.running_requests or not busy)
    )


def _until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s, "it did not come about"


def _replaced(cluster: Cluster, victim: WorkerStatus) -> bool:
    return any(
        one.role == victim.role and one.connected and one.worker_id != victim.worker_id
        for one in cluster.workers()
    )


def test_a_prompt_is_read_by_one_vllm_and_answered_by_another(pair: Cluster) -> None:
    done = pair.tandem("generate", _PROMPT, "--max-tokens", "8", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(answer["token_ids"]) == 8
    assert answer["report"]["prefill_worker"].startswith("prefill")
    assert answer["report"]["decode_worker"].startswith("decode")
    assert answer["report"]["handoff"]["kv_bytes"] > 0


def test_status_shows_vllm_workers_with_leases(pair: Cluster) -> None:
    done = pair.tandem("status", "--json")
    assert done.returncode == 0, done.stderr
    workers = json.loads(done.stdout)["workers"]
    assert sorted(worker["role"] for worker in workers) == ["decode", "decode", "prefill"]
    assert all(worker["connected"] and worker["lease_remaining_s"] > 0 for worker in workers)


def test_the_openai_client_completes_and_chats(pair: Cluster) -> None:
    with openai.OpenAI(base_url=f"http://{pair.http}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == [_NAME]
        whole = client.completions.create(model=_NAME, prompt=_PROMPT, max_tokens=12, temperature=0)
        stream = client.completions.create(
            model=_NAME, prompt=_PROMPT, max_tokens=12, temperature=0, stream=True
        )
        assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
        chat = client.chat.completions.create(
            model=_NAME, messages=[{"role": "user", "content": _PROMPT}], max_tokens=12
        )
        assert chat.usage is not None
        assert chat.usage.completion_tokens > 0


def test_a_drained_worker_is_spared_until_it_takes_work_again(
    pair: Cluster, stub: InferenceStub
) -> None:
    drained = _worker(pair, "prefill").worker_id
    done = pair.tandem("drain", drained, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["safe_to_delete"]
    _, finished = _generate(stub, _request(1, 4))
    # Decode reads the prompt itself: nothing is lost without a prefill worker.
    assert finished.report.prefill_worker == finished.report.decode_worker
    assert pair.tandem("drain", drained, "--resume").returncode == 0
    _, finished = _generate(stub, _request(2, 4))
    assert finished.report.prefill_worker == drained


def test_an_answer_goes_on_when_its_decode_worker_was_killed(
    pair: Cluster, stub: InferenceStub
) -> None:
    request = _request(3, 600)
    undisturbed, _ = _generate(stub, request)
    stream = stub.Generate(request, timeout=_PATIENCE_S)
    token_ids: list[int] = []
    while len(token_ids) < 3:
        token_ids.extend(next(iter(stream)).delta.token_ids)
    victim = _worker(pair, "decode", busy=True)
    os.kill(victim.pid, signal.SIGKILL)
    for response in stream:
        token_ids.extend(response.delta.token_ids)
    assert response.finished.reason == REASON_LENGTH
    assert token_ids == undisturbed
    assert response.finished.report.decode_worker != victim.worker_id


def test_answers_go_on_without_the_prefill_worker_and_with_the_next_one(
    pair: Cluster, stub: InferenceStub
) -> None:
    expected, _ = _generate(stub, _request(4, 8))
    victim = _worker(pair, "prefill")
    os.kill(victim.pid, signal.SIGKILL)
    assert _generate(stub, _request(4, 8))[0] == expected
    # Ray Serve starts another.
    _until(lambda: _replaced(pair, victim))
    _, finished = _generate(stub, _request(5, 8))
    assert finished.report.prefill_worker == _worker(pair, "prefill").worker_id


def test_a_cluster_stops_while_one_of_its_workers_starts(pair: Cluster) -> None:
    logs = Path(pair.environment["XDG_STATE_HOME"])
    before = set(logs.rglob("decode-*.vllm.log"))
    os.kill(_worker(pair, "decode").pid, signal.SIGKILL)
    _until(lambda: set(logs.rglob("decode-*.vllm.log")) != before)
    done = pair.tandem("down")
    assert done.returncode == 0, done.stderr
