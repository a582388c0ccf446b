"""API servers to test against: in memory, and a real one where its binaries are at hand."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.k8s.memory_server import MemoryServer
from tests.integration.k8s.operator_process import User
from tests.integration.k8s.real_server import RealServer, assets


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """One for all tests, since it takes its time to start; each has a namespace of its own."""
    if assets() is None:
        folder = os.environ.get("KUBEBUILDER_ASSETS", "not set")
        pytest.skip(f"no kube-apiserver and etcd in KUBEBUILDER_ASSETS ({folder})")
    server = RealServer(tmp_path_factory.mktemp("kube-apiserver"))
    yield server
    server.close()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a test is: a namespace of a server, and how an operator and a user reach it."""

    server: MemoryServer | RealServer
    namespace: str
    operator: Path
    user: Path

    def options(self) -> list[str]:
        """Of an operator that looks after this namespace alone, where there are others."""
        return [] if self.namespace == "default" else [f"--namespace={self.namespace}"]


_COUNT = itertools.count(1)


@pytest.fixture(scope="session", params=["in memory", "kube-apiserver"])
def shared_server(request: pytest.FixtureRequest) -> RealServer | None:
    """None: each test has a server of its own, in memory."""
    if request.param == "in memory":
        return None
    server: RealServer = request.getfixturevalue("real_server")
    return server


@pytest.fixture
def place(shared_server: RealServer | None, tmp_path: Path) -> Iterator[Place]:
    if shared_server is not None:
        yield _in_new_namespace(shared_server)
        return
    server = MemoryServer(tmp_path)
    yield Place(server, "default", server.kubeconfig, server.kubeconfig)
    server.close()


@pytest.fixture
def real_place(real_server: RealServer) -> Place:
    return _in_new_namespace(real_server)


def _in_new_namespace(server: RealServer) -> Place:
    namespace = f"test-{next(_COUNT)}"
    server.new_namespace(namespace)
    return Place(server, namespace, server.operator, server.kubeconfig)


@pytest.fixture
def operator_log(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "operator.log"
    path.touch()
    yield path
    print(path.read_text(encoding="utf-8"))  # noqa: T201 - shown when the test fails


@pytest.fixture
def user(request: pytest.FixtureRequest) -> Iterator[User]:
    name = "real_place" if "real_place" in request.fixturenames else "place"
    place = request.getfixturevalue(name)
    user = User(place.user, place.namespace)
    yield user
    user.close()
