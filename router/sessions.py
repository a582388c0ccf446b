"""One session with one worker: commands down, events up, again after every break.

A session that breaks loses everything that the worker held for this router; the worker frees it
on its side. So the core hears WorkerLost at once, and WorkerJoined when a new session stands.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator

from protos.tandem.v1 import worker_pb2
from router.core.events import Event, WorkerJoined, WorkerLost
from router.wire import ProtocolError, events_of
from workers.http2.client import BidiCall, CallEnded
from workers.registry import WorkerRecord

_LOG = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 2.0
_WELCOME_TIMEOUT_S = 10.0
# A worker that takes none of so many waiting commands for so long has stopped reading. A burst of
# requests alone is no reason: credits bound it.
_QUEUED_COMMANDS = 1024
_READING_PATIENCE_S = 5.0
# What is done with events in one turn of the loop: a step that ends many requests would hold up the
# tokens of all others, and new requests.
_TURN_S = 0.0005
_METHOD = f"/{worker_pb2.DESCRIPTOR.services_by_name['Worker'].full_name}/Session"


class Session:
    """Keeps a session with `record`'s worker until closed. Owned by the router's event loop."""

    def __init__(self, record: WorkerRecord, router_id: str, emit: Callable[[Event], None]) -> None:
        """`emit` is called with each event, in order, from the event loop."""
        self.record = record
        self._router_id = router_id
        self._emit = emit
        self._call: BidiCall | None = None
        self._task: asyncio.Task[None] | None = None
        self._events: deque[Iterator[Event]] = deque()  # that came and were not passed on yet
        self._going_on: asyncio.Handle | None = None
        self.connected = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep(), name=f"session {self.record.worker_id}")

    def send(self, command: worker_pb2.SessionCommand) -> None:
        """Queue a command; one that finds no session is dropped, like those the break took."""
        call = self._call
        if call is None:
            return
        call.send(command.SerializeToString())
        if call.backlog > _QUEUED_COMMANDS:
            waited_s = time.monotonic() - call.progress_s
            if waited_s > _READING_PATIENCE_S:
                call.end(CallEnded("it stopped reading its commands"))

    async def close(self) -> None:
        """End the session; what the worker holds for it is lost."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _keep(self) -> None:
        """Connect, serve, and connect again, waiting longer while the worker is not there."""
        worker_id = self.record.worker_id
        wait_s = _FIRST_RETRY_S
        while True:
            detail = "it left the directory"
            try:
                await self._serve()
            except (CallEnded, ProtocolError, OSError) as error:
                detail = str(error) or type(error).__name__
            except Exception:  # noqa: BLE001
                # A fault of ours must not cost more than this session.
                _LOG.exception("worker %s: its session failed", worker_id)
                detail = "the router failed on what it sent"
            finally:
                self._call = None
                if self.connected.is_set():
                    wait_s = _FIRST_RETRY_S
                    self.connected.clear()
                    _LOG.warning("worker %s: %s", worker_id, detail)
                    self._pass_all_on()
                    self._emit(WorkerLost(worker_id, detail))
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2.0 * wait_s, _LONGEST_RETRY_S)

    async def _serve(self) -> None:
        """One session from beginning to end; raises why it ended."""
        address = self.record.address
        host, _, port = address.rpartition(":")
        call = BidiCall(_METHOD, address, self._take)
        try:
            async with asyncio.timeout(_WELCOME_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(
                    lambda: call, host.strip("[]"), int(port)
                )
                self._call = call
                hello = worker_pb2.SessionCommand(hello=worker_pb2.Hello(router_id=self._router_id))
                call.send(hello.SerializeToString())
                await self._until_connected(call)
            await call.wait_ended()
        except TimeoutError as error:
            raise CallEnded("it did not welcome the router in time") from error
        finally:
            call.end(CallEnded("the router left"))

    async def _until_connected(self, call: BidiCall) -> None:
        ended = asyncio.ensure_future(call.wait_ended())
        connected = asyncio.ensure_future(self.connected.wait())
        try:
            await asyncio.wait({ended, connected}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                ended.result()
        finally:
            connected.cancel()
            ended.cancel()

    def _take(self, data: bytes) -> None:
        message = worker_pb2.SessionEvents.FromString(data)
        if not self.connected.is_set():
            self._welcome(message)
        self._events.append(events_of(self.record.worker_id, message))
        if self._going_on is None:
            self._pass_on(time.monotonic() + _TURN_S)

    def _pass_on(self, until_s: float) -> None:
        """Pass events on until then; the rest in later turns of the loop, and meanwhile the worker
        is not read: what it has to say then comes in fewer messages."""
        try:
            while self._events:
                for event in self._events[0]:
                    self._emit(event)
                    if time.monotonic() > until_s:
                        self._going_on = asyncio.get_running_loop().call_soon(self._go_on)
                        return
                self._events.popleft()
        except Exception:
            self._events.clear()  # as the call ends with it
            raise
        finally:
            if self._call is not None:
                self._call.read(self._going_on is None)

    def _go_on(self) -> None:
        self._going_on = None
        try:
            self._pass_on(time.monotonic() + _TURN_S)
        except Exception as error:  # noqa: BLE001 - whoever waits for the end of the call gets it
            if self._call is not None:
                self._call.end(error)

    def _pass_all_on(self) -> None:
        """The session is over: what it said before still counts, and comes before its loss."""
        if self._going_on is not None:
            self._going_on.cancel()
            self._going_on = None
        try:
            self._pass_on(math.inf)
        except Exception:  # noqa: BLE001 - the session is lost as it is
            _LOG.exception("worker %s: what it said last was not taken", self.record.worker_id)

    def _welcome(self, message: worker_pb2.SessionEvents) -> None:
        record = self.record
        if not message.HasField("welcome"):
            raise ProtocolError("it did not welcome the router")
        if message.welcome.worker_id != record.worker_id:
            found = message.welcome.worker_id
            raise ProtocolError(f"{record.address} is worker {found!r}, not {record.worker_id!r}")
        self.connected.set()
        version = f"{record.model_fingerprint}@{record.epoch}"
        self._emit(WorkerJoined(record.worker_id, record.role, version))
