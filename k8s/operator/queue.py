"""Which services to look at next, and when: one owner for all reasons to look again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from k8s.operator.api import ApiError

_LOG = logging.getLogger(__name__)
_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0
_SETTLE_S = 0.2  # news come in bursts: one look serves several


@dataclass(frozen=True, slots=True, order=True)
class ServiceKey:
    namespace: str
    name: str


Look = Callable[[ServiceKey], Awaitable[float | None]]


class WorkQueue:
    """Calls `look` for each service that is due, never twice at once for one.

    A look that fails is repeated after 1 s, 2 s, 4 s and so on up to a minute, or when the server
    asks for more patience, after that.
    """

    def __init__(self, look: Look, parallel: int = 4) -> None:
        self._look = look
        self._parallel = parallel
        self._due: dict[ServiceKey, float] = {}
        self._failures: dict[ServiceKey, int] = {}
        self._running: dict[ServiceKey, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    def add(self, key: ServiceKey, after_s: float = _SETTLE_S) -> None:
        """Look at a service, at the latest after `after_s`."""
        due = asyncio.get_running_loop().time() + after_s
        self._due[key] = min(due, self._due.get(key, due))
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled; a look that has begun is finished first."""
        try:
            while True:
                self._changed.clear()
                wait_s = self._start_due()
                try:
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        finally:
            if self._running:
                await asyncio.wait(self._running.values())

    def _start_due(self) -> float | None:
        """Starts what is due; seconds until the next, None when nothing waits."""
        now = asyncio.get_running_loop().time()
        for key, due in sorted(self._due.items(), key=lambda item: item[1]):
            if len(self._running) >= self._parallel:
                return None  # the end of one wakes us
            if due <= now and key not in self._running:
                del self._due[key]
                self._running[key] = asyncio.create_task(self._run_one(key))
        waiting = [due for key, due in self._due.items() if key not in self._running]
        return max(0.0, min(waiting) - now) if waiting else None

    async def _run_one(self, key: ServiceKey) -> None:
        try:
            again_s = await self._look(key)
            self._failures.pop(key, None)
            if again_s is not None:
                self.add(key, again_s)
        except ApiError as error:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            retry_s = min(_LAST_RETRY_S, _FIRST_RETRY_S * 2 ** (failures - 1))
            retry_s = max(retry_s, error.retry_after_s)
            _LOG.warning("%s/%s: %s; again in %.0f s", key.namespace, key.name, error, retry_s)
            self.add(key, retry_s)
        except Exception:  # noqa: BLE001 - logged, and tried again
            # A fault of ours in one service must not end the operator of all others.
            _LOG.exception("%s/%s: reconcile failed", key.namespace, key.name)
            self.add(key, _LAST_RETRY_S)
        finally:
            del self._running[key]
            self._changed.set()
