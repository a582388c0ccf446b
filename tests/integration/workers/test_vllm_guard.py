"""What a vLLM worker has started ends with it, however and whenever that was killed."""

from __future__ import annotations

import subprocess
import sys

import psutil

_PATIENCE_S = 30.0
# As vLLM does: a process below ours that has one below itself, and that notices nothing.
_CHILD = "import subprocess, sys; subprocess.Popen(['sleep', '600']).wait()"
_WORKER = f"""
import subprocess, sys
from workers.engine.vllm.guard import Guard
guard = Guard()
child = subprocess.Popen([sys.executable, "-c", {_CHILD!r}])
print("up", flush=True)
if sys.stdin.readline():
    guard.dismiss()
"""


def _running_worker() -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A worker, and the processes below it: what it started, and who watches over that."""
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "up\n"
    below: list[psutil.Process] = []
    while len(below) < 3:
        below = psutil.Process(worker.pid).children(recursive=True)
    return worker, below


def test_nothing_outlives_a_worker_that_was_killed() -> None:
    worker, below = _running_worker()
    with worker:
        worker.kill()
    _, alive = psutil.wait_procs(below, _PATIENCE_S)
    assert not alive


def test_a_guard_that_was_dismissed_leaves_processes_alone() -> None:
    worker, below = _running_worker()
    with worker:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    watching = [one for one in below if not one.is_running()]
    started = [one for one in below if one.is_running()]
    assert len(watching) == 1
    for process in started:
        process.kill()
    _, alive = psutil.wait_procs(started, _PATIENCE_S)
    assert not alive
