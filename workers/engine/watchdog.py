"""Tells an engine that stands still from one that is busy.

A step that never returns (a deadlocked rank, a kernel that spins, a lost lock) leaves a worker
whose process answers and whose lease is renewed, so nobody else can find it. Pure: times are
passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

# The first steps that do something compile kernels and fill caches.
_FIRST_STEPS = 8
_FIRST_PATIENCE = 10.0


class EngineStalled(Exception):
    """A step took so long that it will not end."""


@dataclass(slots=True)
class StepWatch:
    """Written by the thread that steps, read by the one that watches; each field is one object, so
    neither needs a lock. Times are in seconds on one monotonic clock."""

    limit_s: float
    began_s: float | None = None  # None while the engine waits for commands
    worked: int = 0  # steps that had something to say

    def begin(self, now_s: float) -> None:
        """A step, and the commands before it, begin."""
        self.began_s = now_s

    def rest(self) -> None:
        """The engine waits for commands, which may take for ever."""
        self.began_s = None

    def overdue(self, now_s: float) -> str:
        """What to say of a step that has taken too long; empty while none has."""
        began_s = self.began_s
        if began_s is None:
            return ""
        limit_s = self.limit_s * (_FIRST_PATIENCE if self.worked < _FIRST_STEPS else 1.0)
        if now_s - began_s <= limit_s:
            return ""
        return (
            f"a step of the engine has not ended after {now_s - began_s:.0f} s; "
            f"step_limit_s allows {limit_s:.0f} s"
        )
