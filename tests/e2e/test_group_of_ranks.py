"""A cluster whose decode worker is a Helix group: it answers, and is replaced when a rank dies."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.clusters import Cluster, running_cluster
from tests.e2e.conftest import TINY
from tests.reference_models import load_reference, reference_greedy

pytestmark = pytest.mark.e2e

_SPEC = """
prefill: {workers: {min: 0}}
decode: {layout: {kvp: 2, ep: 2}, draft_tokens: 3}
"""
_REPLACED_TIMEOUT_S = 90.0
_TOKENS = 8


def _answer(cluster: Cluster) -> list[int]:
    done = cluster.tandem("generate", "In the beginning", "--max-tokens", str(_TOKENS), "--json")
    assert done.returncode == 0, done.stderr
    token_ids = json.loads(done.stdout)["token_ids"]
    assert isinstance(token_ids, list)
    return token_ids


def test_a_group_answers_and_is_replaced_when_one_of_its_ranks_is_killed(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    prompt = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode("In the beginning").ids
    expected = reference_greedy(load_reference(TINY), prompt, _TOKENS)
    spec = tmp_path / "cluster.yaml"
    spec.write_text(_SPEC)
    with running_cluster(tmp_path, "-f", str(spec)) as cluster:
        (worker,) = cluster.workers()
        assert worker.layout == "kvp=2 tpa=1 ep=2 tpf=1"
        assert _answer(cluster) == expected
        (rank,) = psutil.Process(worker.pid).children()
        rank.kill()
        deadline_s = time.monotonic() + _REPLACED_TIMEOUT_S
        while not any(
            other.connected and other.worker_id != worker.worker_id for other in cluster.workers()
        ):
            assert time.monotonic() < deadline_s, "the worker was not replaced"
        assert _answer(cluster) == expected
