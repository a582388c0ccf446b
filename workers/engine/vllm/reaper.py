"""Ends what is left of a process group once whoever holds our standard input is gone.

Run as a file of its own (`python -I -S reaper.py GROUP`), so that it starts in milliseconds and
imports nothing of ours.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

_POLL_S = 0.05
# Memory that ranks on a CPU share, and take away only where they end on their own.
_SHARED = b"/dev/shm/vllm_dist_"


def members(group: int) -> list[int]:
    """The running processes of a group; without Python's tracker of shared memory, which ends on
    its own and clears up before it does."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            # After the name, which may hold anything: state, parent, group.
            state, _, its_group = (process / "stat").read_bytes().rpartition(b")")[2].split()[:3]
            tracker = b"resource_tracker" in (process / "cmdline").read_bytes()
        except OSError:
            continue  # gone meanwhile
        if int(its_group) == group and state != b"Z" and not tracker:
            found.append(int(process.name))
    return found


def shared_memory(pid: int) -> set[Path]:
    """What of it a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_bytes().splitlines()
    except OSError:
        return set()  # gone meanwhile
    return {Path(line.split(maxsplit=5)[5].decode()) for line in lines if _SHARED in line}


def main() -> None:
    group = int(sys.argv[1])
    sys.stdin.buffer.read()
    left: set[Path] = set()
    # Again, for what was just being started.
    while found := members(group):
        for pid in found:
            left |= shared_memory(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(_POLL_S)
    for path in left:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
