"""Which processes belong to a cluster, whoever their parent is by now.

A mark in the environment is inherited by everything that the cluster starts, Ray's processes and
their children included, and stays readable when a parent has died. It answers the question that
matters after a stop: is anything left?
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil

MARK = "TANDEM_CLUSTER"


def processes_of(cluster: str) -> list[psutil.Process]:
    """All living processes that carry the mark of `cluster`, except this one."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            if process.status() != psutil.STATUS_ZOMBIE and _marked(process, cluster):
                found.append(process)
        except (psutil.Error, OSError):
            # Gone by now, or another user's: not ours.
            continue
    return found


def _marked(process: psutil.Process, cluster: str) -> bool:
    raw = Path(f"/proc/{process.pid}/environ")
    if not raw.exists():
        return process.environ().get(MARK) == cluster
    # A process that changes its title overwrites the beginning of its environment with zeros,
    # where psutil stops to read; the mark came last and is still there.
    return f"{MARK}={cluster}".encode() in raw.read_bytes().split(b"\0")


def end_leftovers(cluster: str, patience_s: float = 5.0, kill_s: float = 5.0) -> list[str]:
    """Wait for a stopped cluster's processes to go, end those that stay; returns whom it ended."""
    _, staying = psutil.wait_procs(processes_of(cluster), timeout=patience_s)
    ended = []
    for process in staying:
        try:
            name = f"{process.name()} (pid {process.pid})"
            process.kill()
            ended.append(name)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(staying, timeout=kill_s)
    return ended
