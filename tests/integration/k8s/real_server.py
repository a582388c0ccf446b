"""A real kube-apiserver with etcd, from the folder that KUBEBUILDER_ASSETS names (envtest).

With `kube-controller-manager` in the same folder its garbage collector runs as well, and nothing
else of it: pods, rollouts and KubeRay are played by the tests.
"""

from __future__ import annotations

import contextlib
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

from orchestrator.runtime.ports import free_port
from tests.integration.k8s.audit import POLICY, Audit
from tests.integration.k8s.memory_server import kubeconfig
from tests.unit.k8s.api_server import Object

_K8S = Path(__file__).parents[3] / "k8s"
_SCHEMAS = Path(__file__).parents[2] / "unit" / "k8s" / "schemas"
_READY_S = 120
_TOKEN = "test-admin"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def assets() -> Path | None:
    """Where the binaries are; None when they are nowhere."""
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    if folder and all((Path(folder) / name).exists() for name in ("etcd", "kube-apiserver")):
        return Path(folder)
    return None


class RealServer:
    """Starts them, and has the cluster know what people install before Tandem."""

    def __init__(self, folder: Path) -> None:
        binaries = assets()
        assert binaries is not None
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._port = free_port()
        self._url = f"https://127.0.0.1:{self._port}"
        self.kubeconfig = self._kubeconfig("admin", _TOKEN)
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            self._set_up(folder, binaries)
            stack.pop_all()

    def _set_up(self, folder: Path, binaries: Path) -> None:
        self._start_etcd_and_server(folder, binaries)
        self._wait("/readyz")
        self.audit = Audit(folder / "audit.log")
        for manifest in _foreign_definitions():
            self._request("POST", _CRDS, manifest)
        self._wait("/apis/ray.io/v1", "/apis/monitoring.coreos.com/v1")
        self._wait("/api/v1/namespaces/default")
        self.operator = self._install()
        self.collects = (binaries / "kube-controller-manager").exists()
        if self.collects:
            self._start(
                folder / "kube-controller-manager.log",
                str(binaries / "kube-controller-manager"),
                f"--kubeconfig={self.kubeconfig}",
                "--controllers=garbage-collector-controller",
                "--leader-elect=false",
                "--secure-port=0",
            )

    def _start_etcd_and_server(self, folder: Path, binaries: Path) -> None:
        etcd, peers = free_port(), free_port()
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
        policy = folder / "audit.yaml"
        policy.write_text(yaml.safe_dump(POLICY))
        self._start(
            folder / "kube-apiserver.log",
            str(binaries / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            f"--cert-dir={folder / 'certs'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://127.0.0.1",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.0.0.0/24",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={folder / 'audit.log'}",
            # Nobody makes the default account without a controller manager.
            "--disable-admission-plugins=ServiceAccount",
        )

    def _install(self) -> Path:
        """As people without Helm do it, by kubectl alone; the kubeconfig of the operator's own
        account, which has the chart's rights and no others."""
        self.kubectl("apply", "-k", str(_K8S / "kustomize" / "base"))
        self._wait("/apis/tandem.dev/v1alpha1")
        token = self.kubectl("create", "token", "tandem-operator", "--namespace=tandem")
        return self._kubeconfig("operator", token.strip())

    def new_namespace(self, name: str) -> None:
        self._request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

    def kubectl(self, *arguments: str, fails: bool = False) -> str:
        """What it says; with `fails` it has to refuse, and that is what it says."""
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={self.kubeconfig}", *arguments],
            capture_output=True,
            text=True,
            timeout=_READY_S,
            check=False,
            env={**os.environ, "HOME": str(self._folder)},
        )
        assert (done.returncode != 0) is fails, done.stderr
        return done.stderr if fails else done.stdout

    def _kubeconfig(self, name: str, token: str) -> Path:
        path = self._folder / f"{name}.kubeconfig"
        user: Object = {"token": token}
        insecure: Object = {"insecure-skip-tls-verify": True}
        path.write_text(yaml.safe_dump(kubeconfig(self._url, user, insecure)))
        return path

    def _start(self, log: Path, *command: str) -> None:
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        self._processes.append(process)

    def _wait(self, *paths: str) -> None:
        """Until all of them answer; the server says nothing by itself."""
        deadline = datetime.datetime.now() + datetime.timedelta(seconds=_READY_S)
        for path in paths:
            while not self._answers(path, deadline):
                for process in self._processes:
                    # Wakes at once when the process ends instead of becoming ready.
                    try:
                        process.wait(0.1)
                    except subprocess.TimeoutExpired:
                        continue
                    raise AssertionError(f"{process.args!r} ended: see {self._folder}")

    def _answers(self, path: str, deadline: datetime.datetime) -> bool:
        try:
            self._request("GET", path, None)
        except OSError:
            if datetime.datetime.now() > deadline:
                raise
            return False
        return True

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
