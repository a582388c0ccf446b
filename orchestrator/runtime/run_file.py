"""A record of each running cluster, so that other commands find it.

One JSON file per gRPC port. A record is believed only while the process that wrote it lives: its
start time is compared as well, since process ids are used again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

_START_TOLERANCE_S = 0.5


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a cluster says about itself."""

    cluster: str
    pid: int  # of `tandem up`
    pid_started_unix_s: float
    grpc: str
    http: str
    model: str
    log_dir: str
    temp_dir: str
    local: str = ""  # where commands of this user come in without keys and certificates

    @property
    def for_commands(self) -> str:
        """The gRPC address that commands on this machine use."""
        return self.local or self.grpc

    @property
    def routers(self) -> list[str]:
        """The addresses of all routers for commands on this machine, as far as they are known."""
        return router_addresses(self.grpc, self.local)

    @property
    def alive(self) -> bool:
        """Whether the process that wrote this record is still running."""
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return abs(process.create_time() - self.pid_started_unix_s) < _START_TOLERANCE_S
        except psutil.NoSuchProcess:
            return False


def router_addresses(grpc: str, local: str) -> list[str]:
    """The addresses of all routers of a cluster, by that of clients and that of commands."""
    if not local:
        return [grpc]
    first = Path(local.removeprefix("unix:"))
    return [f"unix:{path}" for path in sorted(first.parent.glob("router-*.sock"))]


class RunFiles:
    """The records of this user on this machine."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._folders = _folders(environ)

    def write(self, record: RunRecord) -> Path:
        """Publish a record, whole or not at all."""
        failure: OSError | None = None
        for folder in self._folders:
            path = folder / f"{record.grpc.rpartition(':')[2]}.json"
            fresh = path.with_suffix(f".{record.pid}.tmp")
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                fresh.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
                fresh.replace(path)
                return path
            except OSError as error:
                failure = error
        assert failure is not None
        raise failure

    def read_all(self) -> dict[Path, RunRecord]:
        """Every record, stale ones too; files that are no records are passed over."""
        return {
            path: record for folder in self._folders for path, record in self._read(folder).items()
        }

    def _read(self, folder: Path) -> dict[Path, RunRecord]:
        records = {}
        for path in sorted(folder.glob("*.json")):
            try:
                records[path] = RunRecord(**json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                continue
        return records

    def running(self) -> list[RunRecord]:
        """Clusters that are alive, from the first place that knows of any."""
        for folder in self._folders:
            alive = [record for record in self._read(folder).values() if record.alive]
            if alive:
                return alive
        return []

    def remove(self, cluster: str) -> None:
        """Forget a cluster."""
        for path, record in self.read_all().items():
            if record.cluster == cluster:
                path.unlink(missing_ok=True)


def _folders(environ: Mapping[str, str]) -> list[Path]:
    """Where records may lie, best first: a command may run with other settings than `up` did."""
    folders = []
    for variable in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        if base := environ.get(variable):
            folders.append(Path(base) / "tandem" / "clusters")
    home = Path(environ.get("HOME") or Path.home())
    folders.append(home / ".cache" / "tandem" / "clusters")
    return folders


def log_folder(cluster: str, environ: Mapping[str, str] = os.environ, keep: int = 10) -> Path:
    """A fresh folder for a cluster's logs; of clusters that have ended, the last `keep` stay."""
    state = environ.get("XDG_STATE_HOME")
    home = Path(environ.get("HOME") or Path.home())
    base = (Path(state) if state else home / ".cache") / "tandem" / "logs"
    folder = base / cluster
    folder.mkdir(parents=True, exist_ok=True)
    running = {record.cluster for record in RunFiles(environ).read_all().values() if record.alive}
    ended = [run for run in base.iterdir() if run.name not in {*running, cluster}]
    for old in sorted(ended, key=lambda run: run.stat().st_mtime, reverse=True)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return folder
