"""What holds for every test: it leaves no process, listening port or shared memory behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import settings

_SHARED_MEMORY = Path("/dev/shm")
# Processes end a moment after they are told to; more than this is a leak.
_GRACE_S = 5.0

# How long an example takes depends on what else the machine does. Every run has the same examples;
# the full suite draws new ones (--hypothesis-profile=new).
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("new", deadline=None)
settings.load_profile("same")


def pytest_configure() -> None:
    # Two cores are shared with the processes that tests start.
    torch.set_num_threads(1)


def _children() -> set[psutil.Process]:
    """Child processes but for the tracker that multiprocessing keeps for the whole run."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            if "resource_tracker" not in " ".join(child.cmdline()):
                found.add(child)
        except psutil.Error:
            continue
    return found


def _listening() -> set[tuple[str, int]]:
    return {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.Process().net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def _segments() -> set[str]:
    if not _SHARED_MEMORY.is_dir():
        return set()
    # OpenMP's mark of a process that uses it; one that is killed cannot take it away.
    return {e.name for e in _SHARED_MEMORY.iterdir() if "KMP_REGISTERED_LIB" not in e.name}


def _used_by_others(segment: str) -> bool:
    """Whether a process that is none of ours has the segment mapped."""
    ours = {psutil.Process().pid, *(child.pid for child in psutil.Process().children(True))}
    for process in psutil.process_iter():
        if process.pid in ours:
            continue
        try:
            if segment in Path(f"/proc/{process.pid}/maps").read_text():
                return True
        except OSError:
            continue
    return False


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test after which a process, a port or a shared-memory segment is still there."""
    children, ports, segments = _children(), _listening(), _segments()
    yield
    new_children = _children() - children
    if new_children:
        _, alive = psutil.wait_procs(new_children, timeout=_GRACE_S)
        names = [process.cmdline() for process in alive if process.is_running()]
        for process in alive:
            process.kill()
        assert not alive, f"processes left behind: {names}"
    new_ports = _listening() - ports
    assert not new_ports, f"ports left open: {sorted(new_ports)}"
    # Another program on this machine may have made one meanwhile, and may have taken it away
    # between the look at its maps and the verdict.
    new_segments = {name for name in _segments() - segments if not _used_by_others(name)}
    new_segments &= _segments()
    assert not new_segments, f"shared memory left behind: {sorted(new_segments)}"
