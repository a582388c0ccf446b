"""A TCP proxy in front of a worker: its connections can be cut or made to hang."""

from __future__ import annotations

import asyncio
import contextlib


class Proxy:
    """Owned by one event loop."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.address = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    def cut(self) -> None:
        """Break every connection; new ones are taken."""
        for writer in self._open:
            writer.transport.abort()

    def hold(self) -> None:
        """Let no byte through until `release`."""
        self._flows.clear()

    def release(self) -> None:
        self._flows.set()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, out = await asyncio.open_connection(self._host, int(self._port))
        except OSError:
            writer.transport.abort()
            return
        for source, sink in ((reader, out), (there, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self._open.add(sink)
        try:
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    await self._flows.wait()
                    sink.write(data)
                    await sink.drain()
        finally:
            # Both ways end together, as a broken connection does.
            sink.transport.abort()
            self._open.discard(sink)
