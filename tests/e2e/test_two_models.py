"""One cluster with two models, each with pools of its own, behind one router."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest

from tests.e2e.clusters import Cluster, running_cluster
from tests.e2e.conftest import TINY

pytestmark = pytest.mark.e2e

_SPEC = f"""
model: {{path: {TINY}, name: real}}
more_models:
  - model: {{path: {TINY}, name: pretended}}
    prefill: {{engine: simulated}}
    decode: {{engine: simulated}}
"""
_PROMPT = "In the beginning there was a module, and the module had a name and a list of functions."


def _answered_by(cluster: Cluster, *flags: str) -> tuple[str, str]:
    """Who read a prompt and who decoded its answer."""
    done = cluster.tandem("generate", _PROMPT, "--max-tokens", "4", "--json", *flags)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    return report["prefill_worker"], report["decode_worker"]


def test_each_model_is_served_by_its_own_pools(tmp_path: Path) -> None:
    spec = tmp_path / "cluster.yaml"
    spec.write_text(_SPEC)
    with running_cluster(tmp_path, "-f", str(spec)) as cluster:
        done = cluster.tandem("status", "--json")
        assert done.returncode == 0, done.stderr
        workers = {
            (one["model"], one["role"], one["engine"]): one["worker_id"]
            for one in json.loads(done.stdout)["workers"]
        }
        assert workers.keys() == {
            ("real", "prefill", "native"),
            ("real", "decode", "native"),
            ("pretended", "prefill", "simulated"),
            ("pretended", "decode", "simulated"),
        }
        for model, engine in (("real", "native"), ("pretended", "simulated")):
            pair = (workers[model, "prefill", engine], workers[model, "decode", engine])
            assert _answered_by(cluster, "--model", model) == pair
        # Without a name it is the first.
        assert _answered_by(cluster)[1] == workers["real", "decode", "native"]
        with openai.OpenAI(base_url=f"http://{cluster.http}/v1", api_key="none") as client:
            assert [model.id for model in client.models.list()] == ["real", "pretended"]
            answer = client.completions.create(model="pretended", prompt=_PROMPT, max_tokens=4)
            assert answer.model == "pretended"
