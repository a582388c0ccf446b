"""A real kube-apiserver with etcd, from the folder that KUBEBUILDER_ASSETS names (envtest)."""

from __future__ import annotations

import datetime
import json
import os
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from k8s.crds.definition import definition
from orchestrator.runtime.ports import free_port
from tests.integration.k8s.memory_server import kubeconfig
from tests.unit.k8s.api_server import Object

_SCHEMAS = Path(__file__).parents[2] / "unit" / "k8s" / "schemas"
_READY_S = 60
_TOKEN = "test-admin"


def assets() -> Path | None:
    """Where the binaries are; None when they are nowhere."""
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    if folder and all((Path(folder) / name).exists() for name in ("etcd", "kube-apiserver")):
        return Path(folder)
    return None


class RealServer:
    """Starts both, and applies the definitions that the operator needs."""

    def __init__(self, folder: Path) -> None:
        binaries = assets()
        assert binaries is not None
        self._processes: list[subprocess.Popen[bytes]] = []
        etcd, peers, port = free_port(), free_port(), free_port()
        self._start(
            folder / "etcd.log",
            str(binaries / "etcd"),
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{etcd}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peers}",
            "--unsafe-no-fsync",
        )
        key = folder / "service-account.key"
        key.write_bytes(_private_key())
        tokens = folder / "tokens.csv"
        tokens.write_text(f'{_TOKEN},admin,admin,"system:masters"\n')
        self._start(
            folder / "kube-apiserver.log",
            str(binaries / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            f"--cert-dir={folder / 'certs'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://127.0.0.1",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.0.0.0/24",
            # Nobody makes the default account without a controller manager.
            "--disable-admission-plugins=ServiceAccount",
        )
        self._url = f"https://127.0.0.1:{port}"
        self.kubeconfig = folder / "kubeconfig"
        user: Object = {"token": _TOKEN}
        insecure: Object = {"insecure-skip-tls-verify": True}
        self.kubeconfig.write_text(yaml.safe_dump(kubeconfig(self._url, user, insecure)))
        self._wait("/readyz")
        for manifest in (definition(), *_foreign_definitions()):
            path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
            self._request("POST", path, manifest)
        for path in ("tandem.dev/v1alpha1", "ray.io/v1", "monitoring.coreos.com/v1"):
            self._wait(f"/apis/{path}")
        self._wait("/api/v1/namespaces/default")

    def _start(self, log: Path, *command: str) -> None:
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        self._processes.append(process)

    def _wait(self, path: str) -> None:
        """Until the path answers; the server says nothing by itself."""
        deadline = datetime.datetime.now() + datetime.timedelta(seconds=_READY_S)
        while True:
            try:
                self._request("GET", path, None)
                return
            except (OSError, urllib.error.HTTPError):
                if datetime.datetime.now() > deadline:
                    raise
                for process in self._processes:
                    assert process.poll() is None, f"{process.args!r} ended"
                    # Wakes at once when the process ends instead of becoming ready.
                    try:
                        process.wait(0.1)
                    except subprocess.TimeoutExpired:
                        continue

    def _request(self, method: str, path: str, body: object) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        request = urllib.request.Request(
            self._url + path,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Authorization": f"Bearer {_TOKEN}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, context=context, timeout=10):
            pass

    def cut_watches(self) -> None:
        """A real server cuts them by itself when it compacts; nothing to do."""

    def close(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.wait(30)


def _private_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _foreign_definitions() -> list[Object]:
    return [
        _crd("ray.io", "RayService", "rayservices", "rayservice.json"),
        _crd("monitoring.coreos.com", "ServiceMonitor", "servicemonitors", "servicemonitor.json"),
    ]


def _crd(group: str, kind: str, plural: str, schema: str) -> Object:
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": json.loads((_SCHEMAS / schema).read_text())},
        "subresources": {"status": {}},
    }
    names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [version]},
    }
