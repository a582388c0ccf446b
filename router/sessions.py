"""One session with one worker: commands down, events up, again after every break.

A session that breaks loses everything that the worker held for this router; the worker frees it
on its side. So the core hears WorkerLost at once, and WorkerJoined when a new session stands.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable

import grpc

from protos.tandem.v1 import worker_pb2
from protos.tandem.v1.worker_pb2_grpc import WorkerStub
from router.core.events import Event, WorkerJoined, WorkerLost
from router.wire import ProtocolError, events_of
from workers.registry import WorkerRecord

_LOG = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 2.0
_WELCOME_TIMEOUT_S = 10.0
# A worker that takes none of so many waiting commands for so long has stopped reading. A burst of
# requests alone is no reason: credits bound it.
_QUEUED_COMMANDS = 1024
_READING_PATIENCE_S = 5.0
_CHANNEL_OPTIONS = (
    # Tickets name every block of a long prompt; commands and events are ours, not a stranger's.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A channel of its own, so that a retry is a new connection and not a shared back-off.
    ("grpc.use_local_subchannel_pool", 1),
)


class Session:
    """Keeps a session with `record`'s worker until closed. Owned by the router's event loop."""

    def __init__(self, record: WorkerRecord, router_id: str, emit: Callable[[Event], None]) -> None:
        """`emit` is called with each event, in order, from the event loop."""
        self.record = record
        self._router_id = router_id
        self._emit = emit
        self._commands: asyncio.Queue[worker_pb2.SessionCommand] | None = None
        self._overflow = asyncio.Event()
        self._taken_s = 0.0  # when the worker took a command last, or had none to take
        self._task: asyncio.Task[None] | None = None
        self.connected = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep(), name=f"session {self.record.worker_id}")

    def send(self, command: worker_pb2.SessionCommand) -> None:
        """Queue a command; one that finds no session is dropped, like those the break took."""
        commands = self._commands
        if commands is None:
            return
        if commands.empty():
            self._taken_s = time.monotonic()
        commands.put_nowait(command)
        if commands.qsize() > _QUEUED_COMMANDS:
            waited_s = time.monotonic() - self._taken_s
            if waited_s > _READING_PATIENCE_S:
                self._overflow.set()

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
                detail = await self._serve()
            except grpc.aio.AioRpcError as error:
                detail = f"its session broke ({error.code().name}: {error.details()})"
            except (ProtocolError, OSError) as error:
                detail = str(error) or type(error).__name__
            except Exception:  # noqa: BLE001
                # A fault of ours must not cost more than this session.
                _LOG.exception("worker %s: its session failed", worker_id)
                detail = "the router failed on what it sent"
            finally:
                self._commands = None
                if self.connected.is_set():
                    wait_s = _FIRST_RETRY_S
                    self.connected.clear()
                    _LOG.warning("worker %s: %s", worker_id, detail)
                    self._emit(WorkerLost(worker_id, detail))
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2.0 * wait_s, _LONGEST_RETRY_S)

    async def _serve(self) -> str:
        """One session from beginning to end; returns or raises why it ended."""
        self._commands = asyncio.Queue()
        self._overflow.clear()
        async with grpc.aio.insecure_channel(self.record.address, _CHANNEL_OPTIONS) as channel:
            call = WorkerStub(channel).Session(self._outgoing(self._commands))
            overflow = asyncio.ensure_future(self._overflow.wait())
            overflow.add_done_callback(lambda _: call.cancel())
            try:
                messages = aiter(call)
                async with asyncio.timeout(_WELCOME_TIMEOUT_S):
                    first = await anext(messages, None)
                self._welcome(first)
                async for message in messages:
                    self._take(message)
            except asyncio.CancelledError:
                # gRPC raises this as well when the call, not this task, was cancelled.
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                full = self._overflow.is_set()
                return "it stopped reading its commands" if full else "it cancelled its session"
            finally:
                overflow.cancel()
                call.cancel()
        return "it closed its session"

    def _welcome(self, message: worker_pb2.SessionEvents | None) -> None:
        record = self.record
        if message is None or not message.HasField("welcome"):
            raise ProtocolError("it did not welcome the router")
        if message.welcome.worker_id != record.worker_id:
            found = message.welcome.worker_id
            raise ProtocolError(f"{record.address} is worker {found!r}, not {record.worker_id!r}")
        self.connected.set()
        version = f"{record.model_fingerprint}@{record.epoch}"
        self._emit(WorkerJoined(record.worker_id, record.role, version))
        self._take(message)

    def _take(self, message: worker_pb2.SessionEvents) -> None:
        for event in events_of(self.record.worker_id, message):
            self._emit(event)

    async def _outgoing(
        self, commands: asyncio.Queue[worker_pb2.SessionCommand]
    ) -> AsyncIterator[worker_pb2.SessionCommand]:
        yield worker_pb2.SessionCommand(hello=worker_pb2.Hello(router_id=self._router_id))
        while True:
            yield await commands.get()
            self._taken_s = time.monotonic()
