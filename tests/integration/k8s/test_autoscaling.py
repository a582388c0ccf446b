"""Traffic at a router, a decision, a resized pool: with the operator as a process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from k8s.operator.kinds import EVENT, TANDEM_SERVICE
from k8s.operator.objects import mapping, sequence, text
from orchestrator.runtime.ports import free_port
from protos.tandem.v1 import admin_pb2
from tests.integration.k8s.cluster import Cluster
from tests.integration.k8s.conftest import Place
from tests.integration.k8s.operator_process import Operator, User

_GROWS = 50  # requests that arrive between two questions


class BusyRouter:
    """More and more has arrived each time that it is asked; one worker of each role serves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrived = 0

    @property
    def handlers(
        self,
    ) -> grpc.GenericRpcHandler[admin_pb2.GetStatusRequest, admin_pb2.GetStatusResponse]:
        """It answers Admin.GetStatus and nothing else."""
        handler = grpc.unary_unary_rpc_method_handler(
            self._status,
            request_deserializer=admin_pb2.GetStatusRequest.FromString,
            response_serializer=admin_pb2.GetStatusResponse.SerializeToString,
        )
        name = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name
        return grpc.method_handlers_generic_handler(name, {"GetStatus": handler})

    def _status(self, request: object, context: object) -> admin_pb2.GetStatusResponse:
        with self._lock:
            self._arrived += _GROWS
            arrived = self._arrived
        bins = [0] * 44
        bins[20] = arrived
        workers = [
            admin_pb2.WorkerStatus(worker_id=f"{role}-a", role=role, connected=True, duty="serving")
            for role in ("prefill", "decode")
        ]
        traffic = admin_pb2.Traffic(
            arrived=arrived,
            prompt_tokens=1000 * arrived,
            prompt_bins=bins,
            finished=arrived,
            answer_tokens=100 * arrived,
            answer_squares=1e4 * arrived,
            ended_prompt_tokens=1000 * arrived,
            met_both=arrived,
        )
        return admin_pb2.GetStatusResponse(workers=workers, traffic=traffic)


@pytest.fixture
def router() -> Iterator[str]:
    """The address of a router that has a lot to do."""
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers((BusyRouter().handlers,))
        address = f"127.0.0.1:{free_port()}"
        server.add_insecure_port(address)
        server.start()
        yield address
        server.stop(None).wait()


def _spec(mode: str) -> dict[str, object]:
    workers = {"workers": {"min": 1, "max": 3}}
    scaling = {"mode": mode, "period_s": 0.2, "cold_start_s": 1, "role_flip": False}
    return {"autoscaling": scaling, "prefill": workers, "decode": dict(workers)}


def test_pools_follow_the_traffic_and_the_story_can_be_asked_for(
    place: Place, user: User, operator_log: Path, router: str
) -> None:
    cluster = Cluster(user, _spec("active"))
    operator = Operator(place.operator, operator_log, *place.options())
    try:
        pool = cluster.run_first_pool()
        cluster.router_pod(pool.split("-")[-1], router)
        user.wait(TANDEM_SERVICE, lambda: "decision" in mapping(cluster.service, "status"))
        user.wait(TANDEM_SERVICE, lambda: sum(cluster.sizes().values()) > 2)

        operator.kill()
        operator = Operator(place.operator, operator_log, *place.options())
        user.wait(TANDEM_SERVICE, lambda: cluster.sizes() == {"prefill": 3, "decode": 3})
        story = _told(place, "scaling", "--json")
        first = json.loads(story)["decisions"][0]
        assert first["decision_id"] == "scale-1"
        assert first["outcome"].startswith("the resource asks for")
        assert "requests/s" in _told(place, "scale-1")
        _, answer = user.call("GET", EVENT.path(user.namespace))
        told = [text(event, "reason") for event in sequence(answer, "items")]
        assert "Scaled" in told
    finally:
        operator.stop()


def _told(place: Place, *arguments: str) -> str:
    """What `tandem why` says of the service."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "orchestrator.cli.main", "why", *arguments),
            f"--service={place.namespace}/laptop",
            f"--kubeconfig={place.user}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_advice_leaves_the_pools_as_they_are(
    place: Place, user: User, operator_log: Path, router: str
) -> None:
    cluster = Cluster(user, _spec("advisory"))
    operator = Operator(place.operator, operator_log, *place.options())
    try:
        pool = cluster.run_first_pool()
        cluster.router_pod(pool.split("-")[-1], router)
        user.wait(TANDEM_SERVICE, lambda: "decision" in mapping(cluster.service, "status"))
        assert cluster.sizes() == {"prefill": 1, "decode": 1}
        assert "advisory: nothing was changed" in _told(place, "scale-1")
        user.merge(TANDEM_SERVICE, "laptop", {"spec": {"autoscaling": {"mode": "off"}}})
        user.wait(TANDEM_SERVICE, lambda: "scaling" not in mapping(cluster.service, "status"))
    finally:
        operator.stop()
