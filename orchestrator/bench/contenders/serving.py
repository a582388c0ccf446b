"""The message loop of contenders that run under our own interpreter, and their memory account."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from orchestrator.bench.messages import Load, MeasureRoofline, Profile, Request, Run

_REQUEST: TypeAdapter[Load | Run | Profile | MeasureRoofline] = TypeAdapter(Request)


def serve(answer: Callable[[Request], BaseModel]) -> None:
    """One answer for each line on standard input until it closes; failures are answers too.

    What libraries print goes to standard error, so that it never gets between the answers.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            said = answer(_REQUEST.validate_json(line)).model_dump_json()
        except Exception as error:  # noqa: BLE001 - whatever it is, the bench reports it as a row
            said = json.dumps({"error": f"{type(error).__name__}: {error}"})
        print(said, file=answers, flush=True)


def reset_peak_memory() -> None:
    """Let `peak_memory_bytes` count from here (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_bytes() -> int:
    """The most resident memory of this process since the last reset (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
