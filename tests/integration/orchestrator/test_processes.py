"""Children that say when they are ready, and clusters that leave no process behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import UserError
from orchestrator.runtime.child import Child, Interrupted
from orchestrator.runtime.leftovers import MARK, end_leftovers, processes_of

_GONE_S = 20.0
_SLEEPER = "import sys; print('ready', flush=True); sys.stdin.read()"


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A process of the cluster `test-mark`."""
    monkeypatch.setenv(MARK, "test-mark")
    with subprocess.Popen(
        [sys.executable, "-c", _SLEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_processes_of_a_cluster_are_found_by_their_mark(marked: subprocess.Popen[str]) -> None:
    assert [process.pid for process in processes_of("test-mark")] == [marked.pid]
    assert processes_of("test") == []


def test_what_stays_after_a_stop_is_ended_and_named(marked: subprocess.Popen[str]) -> None:
    (name,) = end_leftovers("test-mark", patience_s=0.0)
    assert f"(pid {marked.pid})" in name
    assert processes_of("test-mark") == []
    assert end_leftovers("test-mark") == []


def test_the_guardian_ends_a_cluster_whose_command_was_killed(
    marked: subprocess.Popen[str], tmp_path: Path
) -> None:
    temp_dir = tmp_path / "ray"
    temp_dir.mkdir()
    code = (
        "import json, os, sys, pathlib\n"
        "from orchestrator.runtime.child import Child\n"
        "config = json.dumps({'cluster': 'test-mark', 'temp_dir': sys.argv[1]})\n"
        "log = pathlib.Path(sys.argv[1]).parent / 'guardian.log'\n"
        "guardian = Child('guardian', ['orchestrator.runtime.guardian'], config, log)\n"
        "guardian.wait_ready(20)\n"
        "print(guardian.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    owner = subprocess.run(
        [sys.executable, "-c", code, str(temp_dir)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    assert marked.wait(_GONE_S) != 0
    guardian = int(owner.stdout)
    if psutil.pid_exists(guardian):
        psutil.Process(guardian).wait(_GONE_S)
    assert not temp_dir.exists()


def test_a_child_that_ends_before_it_is_ready_is_told_with_its_last_words(tmp_path: Path) -> None:
    child = Child("the reader", ["json.tool", "/nowhere"], "{}", tmp_path / "child.log")
    try:
        with pytest.raises(UserError, match=r"the reader ended with status \d") as caught:
            child.wait_ready(_GONE_S)
        assert "/nowhere" in caught.value.message
        assert str(tmp_path / "child.log") in caught.value.hint
    finally:
        child.stop()


def test_waiting_for_a_child_can_be_interrupted(tmp_path: Path) -> None:
    child = Child("the reader", ["json.tool"], "", tmp_path / "child.log")
    try:
        with pytest.raises(Interrupted):
            child.wait_ready(_GONE_S, interrupted=lambda: True)
    finally:
        child.stop()
    assert child.exit_status() is not None
