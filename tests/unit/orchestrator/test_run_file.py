"""Records of running clusters: found where they were written, disbelieved when stale."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import psutil
import pytest

from orchestrator.runtime.run_file import RunFiles, RunRecord, log_folder


@pytest.fixture
def record() -> RunRecord:
    own = psutil.Process()
    return RunRecord(
        cluster="c0ffee",
        pid=own.pid,
        pid_started_unix_s=own.create_time(),
        grpc="127.0.0.1:50099",
        http="127.0.0.1:8099",
        model="m",
        log_dir="/nowhere",
        temp_dir="/nowhere",
    )


def test_a_record_is_found_again_and_removed(tmp_path: Path, record: RunRecord) -> None:
    files = RunFiles({"HOME": str(tmp_path)})
    path = files.write(record)
    assert path == tmp_path / ".cache" / "tandem" / "clusters" / "50099.json"
    assert files.running() == [record]
    files.remove("c0ffee")
    assert files.read_all() == {}
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "XDG_STATE_HOME"])
def test_the_folders_of_the_desktop_are_respected(
    variable: str, tmp_path: Path, record: RunRecord
) -> None:
    environ = {"HOME": str(tmp_path / "home"), variable: str(tmp_path / "base")}
    path = RunFiles(environ).write(record)
    assert path.is_relative_to(tmp_path / "base")


def test_a_cluster_started_with_other_settings_is_found_as_well(
    tmp_path: Path, record: RunRecord
) -> None:
    RunFiles({"HOME": str(tmp_path)}).write(record)
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    assert RunFiles(environ).running() == [record]


def test_a_closer_place_hides_clusters_of_a_farther_one(tmp_path: Path, record: RunRecord) -> None:
    RunFiles({"HOME": str(tmp_path)}).write(record)
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    near = dataclasses.replace(record, cluster="near")
    RunFiles(environ).write(near)
    assert RunFiles(environ).running() == [near]


def test_a_place_that_cannot_be_written_is_passed_over(tmp_path: Path, record: RunRecord) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(blocked)}
    assert RunFiles(environ).write(record).is_relative_to(tmp_path / ".cache")


def test_a_process_id_that_was_used_again_is_not_believed(record: RunRecord) -> None:
    assert record.alive
    assert not dataclasses.replace(record, pid_started_unix_s=1.0).alive
    assert not dataclasses.replace(record, pid=2**22 + os.getpid()).alive


def test_files_that_are_no_records_are_passed_over(tmp_path: Path, record: RunRecord) -> None:
    files = RunFiles({"HOME": str(tmp_path)})
    path = files.write(record)
    (path.parent / "junk.json").write_text("{")
    (path.parent / "other.json").write_text('{"pid": 1}')
    assert list(files.read_all()) == [path]


def test_only_the_last_logs_of_ended_clusters_are_kept(tmp_path: Path, record: RunRecord) -> None:
    environ = {"HOME": str(tmp_path)}
    RunFiles(environ).write(record)
    running = log_folder("c0ffee", environ)
    for age, name in enumerate(["new", "middle", "old"]):
        folder = log_folder(name, environ)
        (folder / "sub").mkdir()
        (folder / "sub" / "log").write_text("x")
        os.utime(folder, (1000 - age, 1000 - age))
    os.utime(running, (1, 1))
    log_folder("latest", environ, keep=2)
    assert {folder.name for folder in running.parent.iterdir()} == {
        "c0ffee",
        "latest",
        "new",
        "middle",
    }
