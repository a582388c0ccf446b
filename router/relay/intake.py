"""Takes in what worker sessions say, and hands it to the core, tokens merged under load.

Stands between sessions and dispatcher so that everything behind it (the core, text, messages to
clients) is done once for several tokens. Order is kept where it matters: a request's tokens come
before its end and before anything else that is said of it, and before the loss of their worker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from router.core.events import (
    CreditsChanged,
    Ended,
    Event,
    PrefillDone,
    Reserved,
    StateArrived,
    TokensArrived,
    WorkerLost,
)
from router.relay.alarm import Alarm
from router.relay.pacing import SAMPLE_S, Pacer
from router.relay.wheel import SLOTS, TICK_S, TokenWheel, slots_due
from router.router_metrics import RouterMetrics


class Intake:
    """The only way of events from sessions to the core. Owned by the router's event loop."""

    def __init__(self, feed: Callable[[Event], None], metrics: RouterMetrics) -> None:
        """`feed` takes each event in order; `metrics` is told how long tokens were held."""
        self._feed = feed
        self._metrics = metrics
        self._pacer = Pacer(time.monotonic(), time.process_time())
        self._wheels: dict[str, TokenWheel] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._turned_s = 0.0  # when slots were let out last
        self._alarm: Alarm | None = None  # set while tokens come

    @property
    def load(self) -> float:
        """Processor time over time, of this process, lately."""
        return self._pacer.load

    @property
    def hold_s(self) -> float:
        """How long tokens may wait at present."""
        return self._pacer.hold_s

    def take(self, event: Event) -> None:
        """One event of a session, in the order in which the session gives them."""
        match event:
            case TokensArrived():
                self._take_tokens(event)
            case (
                Ended(worker_id, handle)
                | PrefillDone(worker_id, handle)
                | StateArrived(worker_id, handle)
            ):
                wheel = self._wheels.get(worker_id)
                if wheel is not None and not wheel.empty:
                    self._pass_on(wheel, wheel.take((handle,), time.monotonic()))
                self._feed(event)
            case WorkerLost(worker_id):
                wheel = self._wheels.pop(worker_id, None)
                if wheel is not None:
                    self._pass_on(wheel, wheel.turn(SLOTS, time.monotonic()))
                self._feed(event)
            case CreditsChanged() | Reserved() | _:
                self._feed(event)

    def close(self) -> None:
        """Let nothing out any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._alarm is not None:
            self._alarm.close()
            self._alarm = None
        self._wheels.clear()

    def _take_tokens(self, event: TokensArrived) -> None:
        now_s = time.monotonic()
        pacer = self._pacer
        if self._alarm is None:
            self._alarm = Alarm(self._sample)
        if not self._alarm.is_set:
            self._alarm.set(now_s + SAMPLE_S)
        wheel = self._wheels.get(event.worker_id)
        if wheel is None:
            wheel = self._wheels[event.worker_id] = TokenWheel(event.worker_id)
        if pacer.hold_s == 0.0 and wheel.empty:
            self._feed(event)
            return
        self._pass_on(wheel, wheel.put(event, now_s))
        if not wheel.empty and self._timer is None:
            self._turned_s = now_s
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _sample(self, late_s: float) -> None:
        """Look at the load; what the alarm is late by, everything else on the loop is, too."""
        self._metrics.loop_delay.observe(late_s)
        self._pacer.sample(time.monotonic(), time.process_time(), late_s)

    def _tick(self) -> None:
        self._timer = None
        now_s = time.monotonic()
        slots = slots_due(now_s - self._turned_s, self._pacer.hold_s)
        self._turned_s = now_s
        for wheel in list(self._wheels.values()):
            if not wheel.empty:
                self._pass_on(wheel, wheel.turn(slots, now_s))
        if any(not wheel.empty for wheel in self._wheels.values()):
            delay_s = max(0.0, TICK_S - (time.monotonic() - now_s))
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _pass_on(self, wheel: TokenWheel, event: TokensArrived | None) -> None:
        if event is None:
            return
        for wait_s in wheel.waits_s:
            self._metrics.hold.observe(wait_s)
        wheel.waits_s.clear()
        self._feed(event)
