"""Stop requests: Ctrl-C, `tandem down` and a closed terminal all mean the same clean stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

from orchestrator.cli.terminal import note

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """While active, stop signals set a flag instead of ending the process.

    A second Ctrl-C is as clean as the first: ending in the middle of a stop would leave behind
    exactly the processes that the stop is about to end.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._stop.is_set():
            note("still stopping; this takes a few seconds")
        self._stop.set()

    def requested(self) -> bool:
        """Whether somebody wants us to stop."""
        return self._stop.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for a stop request; False after `timeout_s` without one."""
        return self._stop.wait(timeout_s)
