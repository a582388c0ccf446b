"""A real operator process, and a user who acts and waits through the same API."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from kubernetes import client, config

from k8s.operator.kinds import Resource
from k8s.operator.objects import Manifest, sequence, text
from tests.unit.k8s.api_server import Object

_WAIT_S = 60.0


class Operator:
    """`tandem operator run` against one kubeconfig."""

    def __init__(self, kubeconfig: Path, log: Path, *options: str) -> None:
        # Test servers sign their own certificates, which urllib3 warns of at each request.
        python = [sys.executable, "-W", "ignore", "-m"]
        command = [*python, "orchestrator.cli.main", "operator", "run"]
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [*command, f"--kubeconfig={kubeconfig}", "--image=registry.example/tandem:1", *options],
            stdout=self._log,
            stderr=self._log,
        )

    def kill(self) -> None:
        """kill -9"""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self._process.terminate()
        status = self._process.wait(30)
        self._log.close()
        return status


class User:
    """Writes as kubectl would, in one namespace, and waits by watching."""

    def __init__(self, kubeconfig: Path, namespace: str = "default") -> None:
        self.namespace = namespace
        settings = client.Configuration()
        config.load_kube_config(  # type: ignore[no-untyped-call]
            str(kubeconfig), client_configuration=settings
        )
        self._client = client.ApiClient(settings)

    def close(self) -> None:
        self._client.rest_client.pool_manager.clear()

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        kind: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> tuple[int, Object]:
        request = self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": kind},
            body=body,
            auth_settings=["BearerToken"],
        )
        response = self._client.call_api(*request, _request_timeout=_WAIT_S)
        answer: bytes = response.read()  # type: ignore[no-untyped-call]
        return response.status, json.loads(answer)

    def create(self, resource: Resource, manifest: Manifest) -> None:
        status, answer = self.call("POST", resource.path(self.namespace), manifest)
        assert status == 201, answer

    def merge(self, resource: Resource, name: str, change: Object, part: str = "") -> None:
        path = resource.path(self.namespace, name) + part
        status, answer = self.call("PATCH", path, change, "application/merge-patch+json")
        assert status == 200, answer

    def set_status(self, resource: Resource, name: str, status: Object) -> None:
        """As the controller of that kind would."""
        body = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name},
            "status": status,
        }
        path = f"{resource.path(self.namespace, name)}/status"
        query = {"fieldManager": "test", "force": "true"}
        code, answer = self.call("PATCH", path, body, "application/apply-patch+yaml", query)
        assert code == 200, answer

    def delete(self, resource: Resource, name: str) -> None:
        status, answer = self.call("DELETE", resource.path(self.namespace, name))
        assert status == 200, answer

    def all(self, resource: Resource) -> list[Object]:
        """Objects of a kind in the namespace, but for those that any cluster has."""
        _, answer = self.call("GET", resource.path(self.namespace))
        items = [cast(Object, item) for item in sequence(answer, "items")]
        return [i for i in items if text(i, "metadata", "labels", "tandem.dev/service")]

    def get(self, resource: Resource, name: str) -> Object | None:
        status, answer = self.call("GET", resource.path(self.namespace, name))
        return answer if status == 200 else None

    def wait(self, resource: Resource, until: Callable[[], bool]) -> None:
        """Until something holds, looked at after each change of that kind."""
        deadline = time.monotonic() + _WAIT_S
        while True:
            _, answer = self.call("GET", resource.path(self.namespace))
            if until():
                return
            version = text(answer, "metadata", "resourceVersion")
            self._next_change(resource, version, deadline)

    def _next_change(self, resource: Resource, version: str, deadline: float) -> None:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"no change of {resource.plural} led there in {_WAIT_S:.0f} s")
        settings = self._client.configuration
        headers = {}
        if token := settings.get_api_key_with_prefix("BearerToken", alias="authorization"):
            headers["Authorization"] = token
        with self._client.rest_client.pool_manager.request(
            "GET",
            f"{settings.host}{resource.path(self.namespace)}",
            fields={"watch": "true", "resourceVersion": version},
            headers=headers,
            preload_content=False,
            timeout=left_s,
        ) as stream:
            next(iter(stream.stream(65536)), None)
