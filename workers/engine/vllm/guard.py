"""Looks after vLLM's processes: gives them back their cores, and ends them with their worker.

vLLM's engine core does not notice that its parent is gone, and would keep memory and GPUs for ever.
A pipe closes with its writer however that dies, so a shell waits at one and then kills.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import psutil

_WAIT_THEN_KILL = 'read -r _; kill -9 "$@" 2>/dev/null'


def _processes() -> list[psutil.Process]:
    """Below this one; without the tracker of shared memory, which ends on its own and clears up
    before it does."""
    return [
        one
        for one in psutil.Process().children(recursive=True)
        if "resource_tracker" not in " ".join(one.cmdline())
    ]


def unpin() -> None:
    """Let all threads of vLLM run on the cores of this process.

    vLLM's connector binds the thread that computes to the last core of each NUMA node on a CPU:
    that of every worker of a machine to the same one.
    """
    cores = os.sched_getaffinity(0)
    for process in _processes():
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            # A thread may end meanwhile.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(thread.name), cores)


class Guard:
    """Watches over the processes below this one that exist when it is made."""

    def __init__(self) -> None:
        below = _processes()
        self._shell = subprocess.Popen(  # noqa: S603 - ours
            ["/bin/sh", "-c", _WAIT_THEN_KILL, "guard", *(str(one.pid) for one in below)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """The processes are gone, or are somebody else's business."""
        self._shell.kill()
        self._shell.wait()
        assert self._shell.stdin is not None
        self._shell.stdin.close()
