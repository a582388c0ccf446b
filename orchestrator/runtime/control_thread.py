"""An event loop beside the main thread, for what watches over a local cluster while it runs.

The main thread waits in blocking calls (Ray wants to be driven from it); what follows the store or
the clock does so here.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine

_STOP_TIMEOUT_S = 10.0


class ControlThread:
    """Runs one coroutine from construction until `stop`, which cancels it."""

    def __init__(self, control: Callable[[], Coroutine[None, None, None]]) -> None:
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(control())
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> BaseException | None:
        """What ended the coroutine, if something did."""
        return self._failure

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            return
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self._failure = error
        finally:
            # Threads that a cancelled call has left behind end on their own.
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def stop(self) -> None:
        """Cancel the coroutine and wait until it has cleaned up."""
        with contextlib.suppress(RuntimeError):  # the loop is closed when the coroutine has ended
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(_STOP_TIMEOUT_S)
