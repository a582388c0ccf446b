"""How `tandem down` tells that a cluster's process has ended."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil

from orchestrator.cli.down import _ended

_PATIENCE_S = 60.0


def test_a_process_that_its_parent_has_not_asked_after_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        # Looks, and leaves it to be asked after.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        gone = psutil.Process(process.pid)
        assert gone.status() == psutil.STATUS_ZOMBIE
        assert _ended(gone, _PATIENCE_S)
    assert _ended(gone, _PATIENCE_S)


def test_a_process_that_runs_has_not_ended() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        assert not _ended(psutil.Process(process.pid), 0.0)
        process.kill()
