"""Ends vLLM's processes when the worker that started them is killed.

vLLM's engine core does not notice that its parent is gone, and would keep memory and GPUs for ever.
A pipe closes with its writer however that dies, so a shell waits at one and then kills.
"""

from __future__ import annotations

import subprocess

import psutil

_WAIT_THEN_KILL = 'read -r _; kill -9 "$@" 2>/dev/null'


class Guard:
    """Watches over the processes below this one that exist when it is made."""

    def __init__(self) -> None:
        # Not the tracker of shared memory: it ends on its own, and clears up before it does.
        below = [
            one
            for one in psutil.Process().children(recursive=True)
            if "resource_tracker" not in " ".join(one.cmdline())
        ]
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
