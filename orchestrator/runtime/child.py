"""A child process that takes its config on stdin, says when it is ready, and cannot outlive us.

Every Tandem process keeps to the same manners: one JSON line in on standard input, one ready line
out on standard output, logs on standard error, and an end when standard input closes. The pipe
closes with its writer however that dies, so even a parent killed with -9 leaves no child behind.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import protos
from orchestrator.errors import UserError

_POLL_S = 0.1
# Runs a module of ours under an interpreter that may have other versions of what we depend on.
_ELSEWHERE = (
    "import sys, runpy; sys.path.append(sys.argv[1]); sys.argv[:] = sys.argv[2:]; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=False)"
)
_LOG_TAIL_LINES = 15


class Interrupted(Exception):
    """Somebody asked to stop while something was starting."""


def never() -> bool:
    """For waits that nobody interrupts."""
    return False


class Child:
    """One running child; `name` is for people and for its log file."""

    def __init__(
        self,
        name: str,
        module: Sequence[str],
        config: str,
        log_path: Path,
        interpreter: str = "",
    ) -> None:
        """Start `python -m module...`; `config` is one line of JSON.

        Another `interpreter` has packages of its own, and ours only where it lacks them. Raises
        UserError when there is none.
        """
        self.name = name
        self.log_path = log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches only the parent, which then
            # stops its children in order.
            command = [sys.executable, "-m", *module]
            if interpreter:
                root = str(Path(protos.__file__).parent.parent)
                command = [interpreter, "-I", "-c", _ELSEWHERE, root, *module]
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own modules
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                    text=True,
                )
            except OSError as error:
                raise UserError(
                    f"{name}: cannot start {command[0]}: {error.strerror}",
                    "name a Python with vLLM in vllm.python, such as .venv-vllm/bin/python",
                ) from error
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name=f"{name}-stdout", daemon=True)
        self._reader.start()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(config + "\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def wait_ready(self, timeout_s: float, interrupted: Callable[[], bool] = never) -> str:
        """The ready line. Raises UserError when the child ends first or says nothing in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if interrupted():
                raise Interrupted
            try:
                line = self._lines.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if line:
                return line
            self._process.wait()
            raise self.ended_error()
        raise UserError(
            f"{self.name} was not ready within {timeout_s:.0f} s", f"see its log: {self.log_path}"
        )

    def ended_error(self) -> UserError:
        """Why a child that should be running is not, from the end of its log."""
        last_words = self.log_tail()
        separator = ":\n" if last_words else ""
        return UserError(
            f"{self.name} ended with status {self.exit_status()}{separator}{last_words}",
            f"see its log: {self.log_path}",
        )

    def log_tail(self) -> str:
        """The last lines that the child logged."""
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.rstrip().splitlines()[-_LOG_TAIL_LINES:])

    def drain(self, drain_s: float) -> None:
        """Have a worker finish what runs, for so long at most, and then end."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{drain_s}\n")
            self._process.stdin.flush()

    def wait_ended(self, timeout_s: float) -> bool:
        """Whether it ended in that time."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, grace_s: float = 10.0) -> None:
        """Ask, wait, then kill; returns when the process is gone."""
        if self._process.poll() is None:
            self._process.terminate()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
