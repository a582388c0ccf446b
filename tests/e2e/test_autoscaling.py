"""A live cluster whose pools follow the traffic: they grow and shrink, and nothing is lost."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path

import pytest

from orchestrator.client import Client
from protos.tandem.v1 import common_pb2, inference_pb2
from tests.e2e.clusters import Cluster, running_cluster

_SPEC = """
classes:
  interactive: {ttft_ms: 1000, itl_ms: 60}
prefill: {engine: simulated, workers: {min: 1, max: 3}}
decode: {engine: simulated, workers: {min: 1, max: 3}, max_requests: 8}
autoscaling: {mode: active, period_s: 1, cold_start_s: 5}
"""
_LIMIT_S = 120.0


class Users:
    """A closed loop of so many users, who ask again as soon as they are answered."""

    def __init__(self, address: str, users: int, words: int, tokens: int) -> None:
        self._address = address
        self._words, self._tokens = words, tokens
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self.ends: list[str] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(users)]

    def __enter__(self) -> Users:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with Client(self._address) as client:
            while not self._stop.is_set():
                # Each prompt is another one: what is cached costs nothing to read.
                text = f"{next(self._numbers)} " + "the " * self._words
                sampling = inference_pb2.ClientSampling(max_tokens=self._tokens)
                request = inference_pb2.GenerateRequest(text=text, sampling=sampling)
                *_, last = client.generate(request)
                self.ends.append(common_pb2.ReasonCode.Name(last.finished.reason))


def roles(cluster: Cluster) -> dict[str, int]:
    here = [one for one in cluster.workers() if one.connected and one.duty == "serving"]
    return {role: sum(one.role == role for one in here) for role in ("prefill", "decode")}


def wait_for(cluster: Cluster, role: str, least: int, most: int) -> None:
    """Until a pool has so many workers; each look asks the cluster, which takes its time."""
    deadline = time.monotonic() + _LIMIT_S
    for _ in itertools.count():
        found = roles(cluster)
        if least <= found[role] <= most:
            return
        assert time.monotonic() < deadline, found


@pytest.mark.full
def test_pools_grow_flip_and_shrink_through_ray_and_lose_nothing(tmp_path: Path) -> None:
    spec = tmp_path / "cluster.yaml"
    spec.write_text(_SPEC)
    with running_cluster(tmp_path, "--file", str(spec)) as cluster:
        assert roles(cluster) == {"prefill": 1, "decode": 1}
        with Users(cluster.grpc, users=8, words=2500, tokens=10) as readers:
            wait_for(cluster, "prefill", 2, 3)
        # Now answers are long instead of prompts: who read can write.
        with Users(cluster.grpc, users=20, words=10, tokens=400) as writers:
            wait_for(cluster, "decode", 2, 3)
        # Who took the other role goes home, and then the pool that started it has one too many.
        wait_for(cluster, "decode", 1, 1)
        wait_for(cluster, "prefill", 1, 1)
        assert set(readers.ends + writers.ends) <= {"REASON_LENGTH", "REASON_STOP_TOKEN"}
        told = json.loads(cluster.tandem("why", "scaling", "--json").stdout)["decisions"]
        grown = next(one for one in told if one["after"]["prefill"] > one["before"]["prefill"])
        assert "Ray Serve gives the prefill pool" in grown["outcome"]
        flipped = next(one for one in told if one["flips"]["decode"])
        assert "take the role decode" in cluster.tandem("why", flipped["decision_id"]).stdout
        story = cluster.tandem("why", grown["decision_id"]).stdout
        assert "requests/s" in story
        assert "arrival_rps" in story
