"""One worker as a process: an engine behind the gRPC Worker service, registered in the directory.

It runs inside a Ray Serve replica's event loop, or alone: `python -m workers.server` reads a
WorkerConfig as JSON from standard input, prints its WorkerRecord when it is ready, and stops on
SIGTERM or when standard input closes, so that it never outlives its parent. A line there with a
number of seconds has it finish what runs first, for so long at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TextIO, cast

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from protos.tandem.v1 import worker_pb2, worker_pb2_grpc
from protos.tandem.v1.common_pb2 import (
    REASON_LAYOUT_MISMATCH,
    REASON_NOT_DRAINED,
    REASON_WORKER_LOST,
)
from workers.cache_mirror import CacheMirror
from workers.config import WorkerConfig
from workers.engine.commands import Cancel, Drain
from workers.engine.events import Credits, StepEvents
from workers.engine.load import Load
from workers.engine.loop import RunningEngine
from workers.engine.opening import open_engine
from workers.http2.calls import Call
from workers.http2.server import Http2Server
from workers.registry import Role, WorkerDirectory, WorkerRecord, keep_registered
from workers.roles import flip_problem, flipped_config
from workers.session import ProtocolError, RouterSession, SessionEvent
from workers.shares import grant
from workers.telemetry import start_tracing

_LOG = logging.getLogger(__name__)
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# Commands that came at once; credits bound how many a router has reason to send.
_MAX_COMMANDS = 65_536
# Keys of one session stay disjoint from those of this many others.
_MAX_SESSIONS = 4096


class WorkerService(worker_pb2_grpc.WorkerServicer):
    """Routes commands of every session to the one engine, and its events back."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self._engine: RunningEngine | None = None
        self._sessions: dict[int, RouterSession] = {}
        self._credits: Credits | None = None
        self._cache = CacheMirror()
        self._drained = False
        self._emptied = asyncio.Event()
        self._config: WorkerConfig | None = None
        self._flipped: Callable[[WorkerConfig], None] | None = None
        self._load: Load | None = None
        self._next_session = 0

    def attach(
        self,
        engine: RunningEngine,
        config: WorkerConfig,
        block_tokens: int,
        flipped: Callable[[WorkerConfig], None],
    ) -> None:
        """Serve an engine; `flipped` is called when the worker has taken the role of a config."""
        self._engine = engine
        self._config = config
        self._flipped = flipped
        self._cache.block_tokens = block_tokens

    # A coroutine that writes for itself, not the generator that the stub declares: what a step says
    # is on its way without a task being made for it.
    async def Session(  # type: ignore[override]  # noqa: N802 - the name is the protocol's
        self,
        request_iterator: AsyncIterator[worker_pb2.SessionCommand],
        context: grpc.aio.ServicerContext[worker_pb2.SessionCommand, worker_pb2.SessionEvents],
    ) -> None:
        assert self._engine is not None
        number = self._free_number()
        session = RouterSession(number, _MAX_SESSIONS, self._worker_id, self._cache)
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("command") != "hello":
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the first command is hello")
        self._sessions[number] = session
        self._share_credits()
        if self._load is not None:
            session.add_load(self._load)
        reader = asyncio.ensure_future(self._read(session, request_iterator))
        writer = asyncio.ensure_future(_write(session, cast("Call", context)))
        try:
            done, _ = await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
        except ProtocolError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        finally:
            reader.cancel()
            writer.cancel()
            del self._sessions[number]
            self._share_credits()
            for key in session.open_keys:
                self._engine.post(Cancel(key, REASON_WORKER_LOST))

    def _free_number(self) -> int:
        while self._next_session % _MAX_SESSIONS in self._sessions:
            self._next_session += 1
        number = self._next_session % _MAX_SESSIONS
        self._next_session += 1
        return number

    async def _read(
        self, session: RouterSession, commands: AsyncIterator[worker_pb2.SessionCommand]
    ) -> None:
        assert self._engine is not None
        async for message in commands:
            if message.WhichOneof("command") == "flip":
                flipped = self._flip(message.flip)
                # A role that changed concerns every router, a refusal only the one that asked.
                told = (session,) if flipped.reason else tuple(self._sessions.values())
                for one in told:
                    one.add_flipped(flipped)
                continue
            command = session.command(message)
            if command is not None:
                self._engine.post(command)

    def _flip(self, flip: worker_pb2.Flip) -> worker_pb2.Flipped:
        """Take another role if nothing stands against it; what the router is told."""
        config = self._config
        assert self._engine is not None
        assert config is not None
        assert self._flipped is not None
        if not self._drained:
            detail = "drain it first, and wait for Drained"
            return worker_pb2.Flipped(role=config.role, reason=REASON_NOT_DRAINED, detail=detail)
        problem = flip_problem(config, flip.role, flip.layout)
        if problem is not None:
            return worker_pb2.Flipped(
                role=config.role, reason=REASON_LAYOUT_MISMATCH, detail=problem
            )
        role: Role = "prefill" if flip.role == "prefill" else "decode"
        self._config = flipped_config(config, role)
        self._drained = False
        self._flipped(self._config)
        self._engine.post(Drain(resume=True))
        return worker_pb2.Flipped(role=role)

    def deliver(self, events: StepEvents) -> None:
        """Give each session its part of what one engine step said."""
        for key in events.taken:
            if (session := self._owner_of(key)) is not None:
                session.count_work()
        if events.credits is not None:
            self._credits = events.credits
            self._drained = self._drained and events.credits.draining
        if events.credits is not None or events.taken:
            self._share_credits()
        if events.load is not None:
            self._load = events.load
        if events.cache is not None:
            self._cache.apply(events.cache)
        for every in self._sessions.values():
            if events.load is not None:
                every.add_load(events.load)
            if events.cache is not None:
                every.add_cache(events.cache)
        for row in events.tokens:
            if (session := self._owner_of(row.key)) is not None:
                session.add_tokens(row)
        others: list[SessionEvent] = [
            *events.reserved,
            *events.prefill_done,
            *events.state_arrived,
            *events.stayed,
            *events.ended,
        ]
        for event in others:
            if (session := self._owner_of(event.key)) is not None:
                session.add(event)
        if events.drained:
            self._drained = True
            self._emptied.set()
            for every in self._sessions.values():
                every.add_drained()

    async def drain(self) -> None:
        """Take no more work, from any router, and wait until nothing is held or leased."""
        assert self._engine is not None
        self._emptied.clear()
        self._engine.post(Drain())
        await self._emptied.wait()

    def _share_credits(self) -> None:
        """Grant each router its part of what is free."""
        if self._credits is None or not self._sessions:
            return
        part = grant(self._credits, len(self._sessions))
        for session in self._sessions.values():
            session.add_credits(part)

    def _owner_of(self, key: int) -> RouterSession | None:
        """The session of a key; None when it has gone, and its requests are being cancelled."""
        return self._sessions.get(key % _MAX_SESSIONS)


async def _write(session: RouterSession, call: Call) -> None:
    """Send what a session has to say, until cancelled; more of it in one message, and later, when
    the router is slow to read."""
    while True:
        message = await session.next_message()
        if not call.send(message.SerializeToString()):
            await call.room()


class WorkerServer:
    """Starts and stops everything that one worker is."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._tracing = start_tracing(f"tandem-{config.role}", config.trace)
        self._grpc = Http2Server(_MAX_MESSAGE_BYTES, _MAX_COMMANDS)
        self._service = WorkerService(config.worker_id)
        self._engine: RunningEngine | None = None
        self._stopping = asyncio.Event()
        self._lease: asyncio.Task[None] | None = None
        self._record: WorkerRecord | None = None
        self._watch: asyncio.Task[None] | None = None
        self._directory: WorkerDirectory | None = None

    async def start(self) -> WorkerRecord:
        """Load the model, serve, and register; returns what the directory says of this worker.

        Raises CheckpointError for a checkpoint that cannot be loaded, and OSError for a port that
        cannot be bound.
        """
        config = self._config
        self._engine, facts = await open_engine(config, self._tracing, self._service.deliver)
        block_tokens = config.block_tokens if facts.block_tokens is None else facts.block_tokens
        self._service.attach(self._engine, config, block_tokens, self._on_flipped)
        # Has the two methods that generated code calls.
        server = cast("grpc.aio.Server", self._grpc)
        worker_pb2_grpc.add_WorkerServicer_to_server(self._service, server)
        health_service = health.aio.HealthServicer()  # type: ignore[attr-defined]  # not in the stubs
        await health_service.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
        service_name = worker_pb2.DESCRIPTOR.services_by_name["Worker"].full_name
        names = (service_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            ReflectionServicer(names), server
        )
        try:
            port = await self._grpc.listen(config.host, config.port)
        except OSError as error:
            raise OSError(f"worker cannot listen on {config.host}:{config.port}") from error
        self._engine.start()
        record = WorkerRecord(
            worker_id=config.worker_id,
            role=config.role,
            engine=config.engine,
            address=f"{config.host}:{port}",
            model_name=config.model_name,
            model_fingerprint=facts.model_fingerprint,
            epoch=facts.epoch,
            max_model_tokens=facts.max_model_tokens,
            vocab_size=facts.vocab_size,
            layout=config.layout,
            pid=os.getpid(),
            started_unix_s=time.time(),
        )
        self._record = record
        self._watch = asyncio.create_task(self._end_on_failure())
        if config.store_url is not None:
            self._directory = WorkerDirectory(config.store_url, config.cluster)
            self._lease = asyncio.create_task(
                keep_registered(
                    self._directory, self._current_record, config.lease_ms, self._stopping
                )
            )
        return record

    def _current_record(self) -> WorkerRecord:
        assert self._record is not None
        return self._record

    def _on_flipped(self, config: WorkerConfig) -> None:
        """Be found under the new role from the next renewal of the lease on."""
        self._config = config
        self._record = replace(self._current_record(), role=config.role, layout=config.layout)

    @property
    def failure(self) -> BaseException | None:
        """What ended the engine, if something did."""
        return self._engine.failure if self._engine is not None else None

    async def wait_failed(self) -> BaseException:
        """Wait until the engine fails; for whoever watches over this worker."""
        assert self._engine is not None
        # Several may wait; one that gives up must not take the future from the others.
        return await asyncio.shield(asyncio.wrap_future(self._engine.failed))

    async def _end_on_failure(self) -> None:
        """Break the sessions of a failed engine, so that routers learn of it at once."""
        await self.wait_failed()
        self._stopping.set()
        await self._grpc.stop(0.0)

    async def drain(self, timeout_s: float) -> bool:
        """Finish what routers have given to this worker and take no more; the sessions stay.

        False when that takes longer than `timeout_s`. Nothing to do before a start that succeeded
        or after a failure.
        """
        if self._record is None or self._engine is None or self._engine.failure is not None:
            return True
        emptied = asyncio.ensure_future(self._service.drain())
        failed = asyncio.ensure_future(self.wait_failed())
        try:
            done, _ = await asyncio.wait(
                (emptied, failed), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            return bool(done)
        finally:
            emptied.cancel()
            failed.cancel()

    async def stop(self, grace_s: float = 1.0) -> None:
        """Withdraw, end the sessions and free everything; safe after a start that failed."""
        self._stopping.set()
        if self._watch is not None:
            self._watch.cancel()
        if self._lease is not None:
            await self._lease
        if self._directory is not None:
            await self._directory.close()
        await self._grpc.stop(grace_s)
        if self._engine is not None:
            await self._engine.aclose()
        self._tracing.close()


async def _told_to_drain(parent: asyncio.StreamReader) -> float:
    """Wait for the parent to say for how many seconds to finish what runs; 0 when it has gone."""
    try:
        return float(await parent.readline() or 0)
    except ValueError:
        return 0.0


async def _serve(config: WorkerConfig, said: TextIO) -> int:
    """Serve until told to stop; the exit status says whether the engine failed.

    `said` is where the parent reads.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    told: asyncio.Future[float] | None = None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = WorkerServer(config)
    waiters: list[asyncio.Future[object]] = []
    try:
        record = await server.start()
        print(record.to_json(), file=said, flush=True)
        parent = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(parent), sys.stdin)
        told = asyncio.ensure_future(_told_to_drain(parent))
        waiters = [asyncio.ensure_future(one) for one in (stop.wait(), told, server.wait_failed())]
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        if told.done() and (drain_s := told.result()) > 0.0:
            waiters += [asyncio.ensure_future(one) for one in (server.drain(drain_s),)]
            running = [one for one in waiters if not one.done()]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await server.stop()
    if server.failure is not None:
        _LOG.error("engine failed", exc_info=server.failure)
        return 1
    return 0


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    config = WorkerConfig.from_json(sys.stdin.readline())
    try:
        # What libraries and their processes print must not get into the parent's way.
        said = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        sys.exit(uvloop.run(_serve(config, said)))
    except (OSError, ValueError) as error:
        # One line on stderr that the parent can show; a person can do nothing with a stack.
        sys.exit(f"worker {config.worker_id} did not start: {error}")


if __name__ == "__main__":
    main()
