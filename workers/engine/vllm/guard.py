"""Looks after vLLM's processes: gives them back their cores, and ends them with their worker.

vLLM's engine core does not notice that its parent is gone, and would keep memory and GPUs for ever.
A pipe closes with its writer however that dies, so a process of its own waits at one and then ends
the group that the worker led, at whatever point of its start or life that was.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil

from workers.engine.vllm import reaper


def unpin() -> None:
    """Let all threads of vLLM run on the cores of this process.

    vLLM's connector binds the thread that computes to the last core of each NUMA node on a CPU:
    that of every worker of a machine to the same one.
    """
    cores = os.sched_getaffinity(0)
    for process in psutil.Process().children(recursive=True):
        # A process or a thread may end meanwhile.
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(thread.name), cores)


def shared_memory() -> set[Path]:
    """What vLLM's ranks share and, when they are made to end, leave behind."""
    below = psutil.Process().children(recursive=True)
    return {path for process in below for path in reaper.shared_memory(process.pid)}


def guard() -> None:
    """Have all that this process will start end with it, at the latest.

    What is started must be started anew and not forked, or it would hold the pipe open.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    # The other end is closed by nothing but the end of this process.
    readable, _ = os.pipe()
    subprocess.Popen(  # noqa: S603 - ours
        [sys.executable, "-I", "-S", reaper.__file__, str(os.getpid())],
        stdin=readable,
        start_new_session=True,
    )
    os.close(readable)
