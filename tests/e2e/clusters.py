"""Real clusters for tests: `tandem up` in a process of its own, stopped and checked at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from protos.tandem.v1.admin_pb2 import GetStatusRequest, WorkerStatus
from protos.tandem.v1.admin_pb2_grpc import AdminStub

TANDEM = Path(sys.executable).parent / "tandem"
_START_TIMEOUT_S = 180
_STOP_TIMEOUT_S = 90


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that answers. `environment` lets commands find it and no other."""

    grpc: str
    http: str
    environment: dict[str, str]
    process: subprocess.Popen[str]

    def workers(self) -> list[WorkerStatus]:
        with grpc.insecure_channel(self.grpc) as channel:
            return list(AdminStub(channel).GetStatus(GetStatusRequest()).workers)

    def tandem(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `tandem` command against this cluster."""
        return subprocess.run(
            [TANDEM, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_START_TIMEOUT_S,
            check=False,
        )


@contextlib.contextmanager
def running_cluster(folder: Path, *flags: str) -> Iterator[Cluster]:
    """`tandem up` on free ports until the block ends; it must stop cleanly, leaving nothing."""
    environment = os.environ | {"XDG_RUNTIME_DIR": str(folder), "XDG_STATE_HOME": str(folder)}
    command: list[str | Path] = [
        TANDEM,
        "up",
        "--grpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        *flags,
    ]
    with (folder / "up.stderr").open("w") as stderr:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    try:
        endpoints = _read_endpoints(process, folder / "up.stderr")
        yield Cluster(endpoints["gRPC"], endpoints["HTTP"], environment, process)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=_STOP_TIMEOUT_S)
        assert process.returncode == 0, output + (folder / "up.stderr").read_text()
        assert "none left behind" in output
    finally:
        if process.poll() is None:
            # Its own clean-up is what keeps Ray from staying; kill only when that hangs.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT_S)
            process.kill()
            process.wait()


def _read_endpoints(process: subprocess.Popen[str], stderr: Path) -> dict[str, str]:
    assert process.stdout is not None
    endpoints: dict[str, str] = {}
    for line in process.stdout:
        words = line.split()
        if words and words[0] in ("gRPC", "HTTP"):
            endpoints[words[0]] = words[1].removeprefix("http://").removesuffix("/v1")
        if line.startswith("Ctrl-C"):
            return endpoints
    raise AssertionError(f"tandem up ended before it was ready: {stderr.read_text()}")
