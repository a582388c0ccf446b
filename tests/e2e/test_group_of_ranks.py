"""A cluster of groups: prefill hands over to a Helix group, which is replaced when a rank dies."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest

from protos.tandem.v1.admin_pb2 import WorkerStatus
from tests.e2e.clusters import Cluster, running_cluster
from tests.e2e.conftest import TINY
from tests.reference_models import load_reference, reference_greedy

pytestmark = pytest.mark.e2e

_SPEC = """
prefill: {layout: {tp: 2}}
decode: {layout: {kvp: 2, ep: 2}, draft_tokens: 3}
"""
_REPLACED_TIMEOUT_S = 90.0
_TOKENS = 8
# Long enough not to be read where it is decoded.
_PROMPT = "In the beginning there was a module, and the module had a name and a list of functions."


def _answer(cluster: Cluster) -> list[int]:
    done = cluster.tandem("generate", _PROMPT, "--max-tokens", str(_TOKENS), "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["report"]["handoff"]["kv_bytes"] > 0
    token_ids = answer["token_ids"]
    assert isinstance(token_ids, list)
    return token_ids


def _decode_worker(cluster: Cluster, other_than: str = "") -> WorkerStatus | None:
    for worker in cluster.workers():
        if worker.role == "decode" and worker.connected and worker.worker_id != other_than:
            return worker
    return None


def test_a_group_answers_and_is_replaced_when_one_of_its_ranks_is_killed(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    prompt = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(_PROMPT).ids
    expected = reference_greedy(load_reference(TINY), prompt, _TOKENS)
    spec = tmp_path / "cluster.yaml"
    spec.write_text(_SPEC)
    with running_cluster(tmp_path, "-f", str(spec)) as cluster:
        worker = _decode_worker(cluster)
        assert worker is not None
        assert worker.layout == "kvp=2 tpa=1 ep=2 tpf=1"
        assert _answer(cluster) == expected
        (rank,) = psutil.Process(worker.pid).children()
        rank.kill()
        deadline_s = time.monotonic() + _REPLACED_TIMEOUT_S
        while _decode_worker(cluster, other_than=worker.worker_id) is None:
            assert time.monotonic() < deadline_s, "the worker was not replaced"
        assert _answer(cluster) == expected
