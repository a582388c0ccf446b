"""`tandem down`: stop a cluster that runs elsewhere on this machine."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.locate import running_cluster
from orchestrator.cli.terminal import note, progress
from orchestrator.errors import UserError

_PATIENCE_S = 90.0
_POLL_S = 0.05

if TYPE_CHECKING:
    import psutil


def down(
    address: Annotated[
        str | None, typer.Option(help="gRPC address of the cluster, if several run.")
    ] = None,
) -> None:
    """Stop a running cluster, or clear up what a killed one left."""
    import psutil

    from orchestrator.runtime.leftovers import processes_of
    from orchestrator.runtime.run_file import RunFiles

    if _clear_stale(address):
        return
    record = running_cluster(address)
    process = psutil.Process(record.pid)
    with progress() as report:
        report(f"stopping the cluster at {record.grpc}")
        process.terminate()
        alive = not _ended(process, _PATIENCE_S)
    left = processes_of(record.cluster)
    if alive or left:
        raise UserError(
            f"the cluster at {record.grpc} did not stop within {_PATIENCE_S:.0f} s",
            f"see its logs in {record.log_dir}, or kill -9 {record.pid} and run this again",
        )
    RunFiles().remove(record.cluster)
    print(f"stopped the cluster at {record.grpc}")


def _ended(process: psutil.Process, timeout_s: float) -> bool:
    """Whether it ended in that time; one that its parent has not asked after yet has ended too."""
    import psutil

    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(_POLL_S)
                continue
        return True
    return False


def _clear_stale(address: str | None) -> bool:
    """End what clusters whose `up` was killed left behind; True when that was all there was."""
    from orchestrator.runtime.leftovers import end_leftovers
    from orchestrator.runtime.run_file import RunFiles

    files = RunFiles()
    records = list(files.read_all().values())
    stale = [r for r in records if not r.alive and address in (None, r.grpc)]
    for record in stale:
        ended = end_leftovers(record.cluster, patience_s=0.0)
        shutil.rmtree(Path(record.temp_dir), ignore_errors=True)
        files.remove(record.cluster)
        what = f"ended {', '.join(ended)}" if ended else "nothing of it was running"
        note(f"cleared up after the cluster at {record.grpc}, which was killed: {what}")
    return bool(stale) and not any(r.alive for r in records)
