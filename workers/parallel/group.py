"""The ranks that follow rank 0 of a worker: their start, what they are told, and their loss.

Exists so that a worker of several ranks lives and dies as one. Rank 0 is the worker's own process;
the others are its children, each at the end of a pipe. When one of them ends, the rest are killed
at once, which breaks whatever collective rank 0 is in, and rank 0 is told by a callback in case
it is idle. The same pipes carry hand-offs: commands go down among the calls, and what becomes of
them comes up as a line each.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import IO

from torch._C import _distributed_c10d as c10d

from protos.tandem.v1.handoff_pb2 import RankTarget
from workers.config import WorkerConfig
from workers.handoff.messages import Event, decode_event
from workers.parallel.communicator import Communicator
from workers.parallel.errors import RanksLost
from workers.parallel.frames import Told, encode
from workers.parallel.rank import HOST, JOINING, READY, RankSetup, join, read_target
from workers.parallel.traffic import Traffic

_STOP_GRACE_S = 5.0
# A line has a target with its metadata, or an event with an error's text: a few KB at most.
_MOST_LINE_BYTES = 1 << 18
_LOG = logging.getLogger(__name__)


class RankGroup:
    """Ranks 1 to N-1 of one worker, as children of this process."""

    def __init__(self, config: WorkerConfig) -> None:
        """Start them; `join` and `wait_ready` wait for them."""
        self._config = config
        self._timeout_s = config.collective_timeout_s
        self._closing = threading.Event()
        self._lost: RanksLost | None = None
        self._on_lost: Callable[[RanksLost], object] | None = None
        self._lock = threading.Lock()
        self._communicator: Communicator | None = None
        self.targets: list[RankTarget] = []  # memory of ranks 1 to N-1, when they are ready
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._listeners: list[threading.Thread] = []
        # Left to itself, the store would listen on every interface.
        listener = socket.create_server((HOST, 0))
        port = listener.getsockname()[1]
        self._store: c10d.Store | None = c10d.TCPStore(
            HOST,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=self._timeout_s),
            master_listen_fd=listener.detach(),
        )
        self._children = [_start(rank, port, config) for rank in range(1, config.parallel.size)]
        self._watchers = [
            threading.Thread(target=self._watch, args=(rank, child), daemon=True)
            for rank, child in enumerate(self._children, start=1)
        ]
        for watcher in self._watchers:
            watcher.start()

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes of ranks 1 to N-1."""
        return tuple(child.pid for child in self._children)

    @property
    def traffic(self) -> Traffic:
        """What rank 0 sent to the others, and how long it waited for them."""
        assert self._communicator is not None
        return self._communicator.traffic

    def join(self) -> Communicator:
        """Meet the others as rank 0. Raises RanksLost when one of them ends or does not come."""
        self._await_line(JOINING)
        assert self._store is not None
        self._communicator = join(self._config, 0, self._store)
        return self._communicator

    def wait_ready(self) -> None:
        """Wait until all have loaded. Raises RanksLost when one of them ends."""
        self.targets = [read_target(target) for target in self._await_line(READY)]
        self._listeners = [
            threading.Thread(target=self._listen, args=(rank, child), daemon=True)
            for rank, child in enumerate(self._children, start=1)
        ]
        for listener in self._listeners:
            listener.start()

    def on_lost(self, callback: Callable[[RanksLost], object]) -> None:
        """Have `callback` called, in another thread, when a rank is lost; at most once."""
        with self._lock:
            self._on_lost = callback
            lost = self._lost
        if lost is not None:
            callback(lost)

    def tell(self, told: Told) -> None:
        """Have every follower run a call or carry out a command, after all that it was told before.

        Raises:
            RanksLost: one does not take it.
        """
        if self._lost is not None:
            raise self._lost
        frame = encode(told)
        for rank, child in enumerate(self._children, start=1):
            assert child.stdin is not None
            try:
                _write(child.stdin.fileno(), frame, self._timeout_s)
            except OSError as error:
                raise RanksLost(f"rank {rank} takes no calls: {error}") from error

    def take_events(self) -> list[Event]:
        """What followers said of hand-offs since the last call."""
        events: list[Event] = []
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return events

    def close(self) -> None:
        """End the followers and wait for them."""
        self._closing.set()
        for child in self._children:
            assert child.stdin is not None
            with contextlib.suppress(OSError):
                child.stdin.close()
        deadline_s = time.monotonic() + (_STOP_GRACE_S if self._lost is None else 0.0)
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(deadline_s - time.monotonic(), 0.0))
            if child.poll() is None:
                child.kill()
        for thread in (*self._watchers, *self._listeners):
            thread.join()
        for child in self._children:
            assert child.stdout is not None
            child.stdout.close()
        if self._communicator is not None:
            self._communicator.close()
        self._store = None

    def _await_line(self, wanted: str) -> list[str]:
        """Wait until each follower is so far; what it says with that, by rank."""
        said = []
        for rank, child in enumerate(self._children, start=1):
            assert child.stdout is not None
            line = child.stdout.readline(_MOST_LINE_BYTES).decode().strip()
            word, _, rest = line.partition(" ")
            if word != wanted:
                status = child.wait()
                raise RanksLost(f"rank {rank} ended with status {status} while starting")
            said.append(rest)
        return said

    def _listen(self, rank: int, child: subprocess.Popen[bytes]) -> None:
        """Take in what a follower says of hand-offs, until it ends."""
        assert child.stdout is not None
        while line := child.stdout.readline(_MOST_LINE_BYTES):
            try:
                self._events.put(decode_event(line))
            except ValueError as error:
                if not self._closing.is_set() and child.poll() is None:
                    _LOG.error("rank %d is ended, for it says what no rank says: %s", rank, error)
                    child.kill()
                return

    def _watch(self, rank: int, child: subprocess.Popen[bytes]) -> None:
        status = child.wait()
        if self._closing.is_set():
            return
        with self._lock:
            if self._lost is not None:
                return
            self._lost = RanksLost(f"rank {rank} (process {child.pid}) ended with status {status}")
            callback = self._on_lost
        _LOG.error("%s; ending the other ranks", self._lost)
        for other in self._children:
            if other is not child:
                other.kill()
        if callback is not None:
            callback(self._lost)


def _start(rank: int, store_port: int, config: WorkerConfig) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-m", "workers.parallel.rank"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        _send_line(child.stdin, RankSetup(rank, store_port, config).to_json())
    os.set_blocking(child.stdin.fileno(), False)
    return child


def _send_line(stream: IO[bytes], line: str) -> None:
    stream.write(line.encode() + b"\n")
    stream.flush()


def _write(fd: int, data: bytes, timeout_s: float) -> None:
    """Write all of it to a non-blocking pipe. Raises OSError: the reader is gone, or hangs."""
    view = memoryview(data)
    deadline_s = time.monotonic() + timeout_s
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([], [fd], [], left_s)[1]:
                raise TimeoutError(f"not read within {timeout_s:g} s") from None
