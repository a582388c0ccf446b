"""What a vLLM worker has started ends with it, however and whenever that was killed; and the memory
that its ranks share by name, which a fixture of all tests looks for, goes with them."""

from __future__ import annotations

import subprocess
import sys

import psutil

_PATIENCE_S = 30.0
# As vLLM does: a process below ours that has one below itself, and that notices nothing.
_CHILD = """
import mmap, os, subprocess
with open(f"/dev/shm/vllm_dist_test_{os.getpid()}", "w+b") as file:
    file.truncate(4096)
    shared = mmap.mmap(file.fileno(), 4096)
subprocess.Popen(["sleep", "600"]).wait()
"""
_WORKER = f"""
import subprocess, sys
from workers.engine.vllm.guard import guard
guard()
child = subprocess.Popen([sys.executable, "-c", {_CHILD!r}])
print("up", flush=True)
sys.stdin.readline()
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


def test_a_worker_that_leaves_something_behind_still_ends_as_it_wants() -> None:
    worker, below = _running_worker()
    worker.communicate("\n", timeout=_PATIENCE_S)
    assert worker.returncode == 0
    _, alive = psutil.wait_procs(below, _PATIENCE_S)
    assert not alive
