"""A contender's process: alive for as long as its model is measured, one request at a time.

Exists so that contenders share no memory, threads or allocator and yet take turns on the same
weights in one invocation. Between its turns a contender is stopped: idle OpenMP threads and engine
loops go on spinning for a while, and would take the cores of whoever is measured then. A process
ends when its standard input closes or its parent dies, so none outlives us.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from orchestrator.bench.messages import (
    Load,
    Loaded,
    MeasureRoofline,
    Profile,
    Profiled,
    Request,
    Roofline,
    Run,
    Timeline,
)

_END_PATIENCE_S = 3.0
_ANSWER_PATIENCE_S = 900.0  # compiling a model at its load takes minutes on a slow machine
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_LIBC = ctypes.CDLL(None)
_CONTENDERS = Path(__file__).parent / "contenders"

Answer = TypeVar("Answer", bound=BaseModel)


class ContenderFailed(Exception):
    """A contender could not do what it was asked; the message is for people."""


class _Refusal(BaseModel):
    error: str


def own_command(kind: str) -> list[str]:
    """How a contender starts under our own interpreter."""
    return [sys.executable, "-m", f"orchestrator.bench.contenders.{kind}"]


def vllm_command(interpreter: Path) -> list[str]:
    """How vLLM starts under an interpreter that has it, and nothing of ours on its path."""
    return [str(interpreter), "-I", str(_CONTENDERS / "vllm.py")]


def _die_with_parent() -> None:
    """A stopped process cannot see its standard input close; the kernel ends it all the same."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _refusal(line: str) -> str:
    """What an answer that is not the one asked for says."""
    try:
        return _Refusal.model_validate_json(line).error
    except ValidationError:
        return f"it answered {line.strip()[:80]!r}"


class Contender:
    """One running contender; `log_path` gets what it writes to standard error."""

    def __init__(self, command: Sequence[str], log_path: Path) -> None:
        self._log_path = log_path
        try:
            with log_path.open("wb") as log:
                self._process = subprocess.Popen(  # noqa: S603 - our modules, the user's interpreter
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=_die_with_parent,
                    text=True,
                )
        except OSError as error:
            raise ContenderFailed(f"{command[0]}: {error.strerror}") from error

    def load(self, load: Load) -> Loaded:
        return self._ask(load, Loaded)

    def run(self, run: Run) -> Timeline:
        return self._ask(run, Timeline)

    def profile(self, profile: Profile) -> Profiled:
        return self._ask(profile, Profiled)

    def roofline(self, measure: MeasureRoofline) -> Roofline:
        return self._ask(measure, Roofline)

    def close(self) -> None:
        """End the process; harmless when it has ended."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, request: Request, answer: type[Answer]) -> Answer:
        """One request and its answer. Raises ContenderFailed when there is none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(request.model_dump_json() + "\n")
            self._process.stdin.flush()
        late = threading.Timer(_ANSWER_PATIENCE_S, self._process.kill)
        late.start()
        try:
            line = self._process.stdout.readline()
        finally:
            late.cancel()
            self._signal(signal.SIGSTOP)
        if not line:
            raise ContenderFailed(f"its process ended: {self._last_words()}")
        try:
            return answer.model_validate_json(line)
        except ValidationError:
            raise ContenderFailed(_refusal(line)) from None

    def _signal(self, number: signal.Signals) -> None:
        """Stop or continue the contender and whatever it started, if it is still there."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _last_words(self) -> str:
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else "it said nothing"
