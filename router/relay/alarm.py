"""An alarm of the event loop that is known to the microsecond, so that its delay tells of the loop.

The loop's own timers move in whole milliseconds: one may be a millisecond late where nothing keeps
the loop from it, which is as much as is to be measured. A timer of the kernel is ready at its
moment, and then waits for the loop like everything else that comes from outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from collections.abc import Callable
from typing import Final

_CLOCK_MONOTONIC: Final = 1  # that of time.monotonic
_TFD_TIMER_ABSTIME: Final = 1
_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_NO_REPEAT: Final = (0, 0)


class Alarm:
    """Rings once for each time that it is set. Owned by the event loop that makes it."""

    def __init__(self, ring: Callable[[float], None]) -> None:
        """`ring` is told by how many seconds it is late. Raises OSError."""
        self._ring = ring
        self._due_s: float | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = _LIBC.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "the kernel gives no timer")
        self._loop.add_reader(self._timer, self._ready)

    @property
    def is_set(self) -> bool:
        return self._due_s is not None

    def set(self, due_s: float) -> None:
        """Ring at a moment of the monotonic clock, instead of any other."""
        self._due_s = due_s
        seconds, fraction = divmod(due_s, 1.0)
        moment = (ctypes.c_long * 4)(*_NO_REPEAT, int(seconds), int(fraction * 1e9))
        _LIBC.timerfd_settime(self._timer, _TFD_TIMER_ABSTIME, moment, None)

    def close(self) -> None:
        """Ring no more."""
        self._loop.remove_reader(self._timer)
        os.close(self._timer)

    def _ready(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it was set anew meanwhile
            os.read(self._timer, 8)
        due_s, self._due_s = self._due_s, None
        if due_s is not None:
            self._ring(max(0.0, time.monotonic() - due_s))
