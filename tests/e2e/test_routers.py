"""Several routers behind one port, with API keys, in front of simulated workers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import grpc
import psutil
import pytest

from protos.tandem.v1 import inference_pb2, inference_pb2_grpc
from tests.e2e.clusters import Cluster, running_cluster
from workers.engine.commands import Sampling
from workers.engine.simulated.text import expected_answer

pytestmark = pytest.mark.e2e

_KEY = "the key of the only client"
_TOKENS = 40
_PATIENCE_S = 60.0
_SPEC = f"""
prefill: {{engine: simulated}}
decode: {{engine: simulated}}
router: {{processes: 2, grpc: "127.0.0.1:0", http: "127.0.0.1:0"}}
security: {{api_keys: {{only: "{_KEY}"}}}}
"""


def _answer(cluster: Cluster, prompt: list[int], key: str = _KEY) -> list[int]:
    """Over a connection of its own, so that the kernel chooses a router."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(cluster.grpc, options) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        model = stub.GetModel(
            inference_pb2.GetModelRequest(), metadata=(("authorization", f"Bearer {key}"),)
        )
        request = inference_pb2.GenerateRequest(
            token_ids=inference_pb2.TokenIds(ids=prompt),
            sampling=inference_pb2.ClientSampling(
                max_tokens=_TOKENS, temperature=0, ignore_eos=True
            ),
        )
        ids: list[int] = []
        metadata = (("authorization", f"Bearer {key}"),)
        for response in stub.Generate(request, metadata=metadata, timeout=_PATIENCE_S):
            ids.extend(response.delta.token_ids)
    assert ids == expected_answer(prompt, Sampling(_TOKENS), model.vocab_size, _TOKENS)
    return ids


def _routers(cluster: Cluster) -> set[int]:
    found = set()
    for child in psutil.Process(cluster.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ends, or has ended and is a zombie
            if child.cmdline()[1:3] == ["-m", "router"]:
                found.add(child.pid)
    return found


def test_two_routers_serve_one_port_and_one_that_dies_is_replaced(tmp_path: Path) -> None:
    spec = tmp_path / "cluster.yaml"
    spec.write_text(_SPEC)
    with running_cluster(tmp_path, "-f", str(spec)) as cluster:
        for number in range(12):
            _answer(cluster, [number, 5, 6])
        with pytest.raises(grpc.RpcError) as error:
            _answer(cluster, [1], key="a key that nobody was given")
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
        # Commands of the cluster's owner need no key.
        assert cluster.tandem("status").returncode == 0
        before = _routers(cluster)
        assert len(before) == 2
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + _PATIENCE_S
        while victim in _routers(cluster) or len(_routers(cluster)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # What is sent to the one that is left, and to the one that comes, is answered.
        for number in range(12):
            while True:
                try:
                    _answer(cluster, [number, 7, 8])
                    break
                except grpc.RpcError as lost:
                    code = lost.code()
                    assert code is grpc.StatusCode.UNAVAILABLE
                    assert time.monotonic() < deadline
    for log in tmp_path.rglob("*.log"):
        assert _KEY not in log.read_text(errors="replace")
