"""Which workers there are: one session for each worker of the directory, or of a fixed list."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from protos.tandem.v1 import worker_pb2
from router.core.events import Event
from router.sessions import Session
from workers.registry import WorkerDirectory, WorkerRecord

_LOG = logging.getLogger(__name__)


class Membership:
    """Opens and closes sessions as workers come and go. Owned by the router's event loop."""

    def __init__(
        self,
        model_name: str,
        router_id: str,
        emit: Callable[[Event], None],
        others: frozenset[str] = frozenset(),
    ) -> None:
        """Workers of other models than `model_name` are left alone; those of `others` belong to
        somebody else here."""
        self._model_name = model_name
        self._router_id = router_id
        self._emit = emit
        self._others = others
        self._sessions: dict[str, Session] = {}
        self._strangers: set[str] = set()

    @property
    def max_model_tokens(self) -> int:
        """What every worker can take; 0 while there is none."""
        return min((record.max_model_tokens for record in self.records), default=0)

    @property
    def vocab_size(self) -> int:
        """The vocabulary that every worker has; 0 while there is none."""
        return min((record.vocab_size for record in self.records), default=0)

    @property
    def records(self) -> list[WorkerRecord]:
        return [session.record for session in self._sessions.values()]

    def layout_of(self, role: str) -> str:
        """The layout of the workers of a role; empty while there is none."""
        return next((record.layout for record in self.records if record.role == role), "")

    def is_connected(self, worker_id: str) -> bool:
        session = self._sessions.get(worker_id)
        return session is not None and session.connected.is_set()

    def send(self, worker_id: str, command: worker_pb2.SessionCommand) -> None:
        """Hand a command to a worker's session."""
        session = self._sessions.get(worker_id)
        if session is not None:
            session.send(command)

    async def reconcile(self, records: Iterable[WorkerRecord]) -> None:
        """Have sessions with exactly these workers."""
        wanted = {record.worker_id: record for record in records if self._serves(record)}
        gone = [
            self._sessions.pop(worker_id)
            for worker_id, session in list(self._sessions.items())
            if worker_id not in wanted or not _same_session(wanted[worker_id], session.record)
        ]
        for session in gone:
            await session.close()
        for worker_id, record in wanted.items():
            if worker_id in self._sessions:
                self._sessions[worker_id].record = record
            else:
                session = Session(record, self._router_id, self._emit)
                self._sessions[worker_id] = session
                session.start()

    async def follow(self, directory: WorkerDirectory) -> None:
        """Reconcile with every change of the directory, until cancelled."""
        async for snapshot in directory.watch():
            await self.reconcile(record for record, _ in snapshot.values())

    async def wait_connected(self, timeout_s: float) -> None:
        """Wait until every worker has a session; raises TimeoutError that names the others."""
        try:
            async with asyncio.timeout(timeout_s):
                for session in list(self._sessions.values()):
                    await session.connected.wait()
        except TimeoutError:
            absent = [
                f"{session.record.worker_id} at {session.record.address}"
                for session in self._sessions.values()
                if not session.connected.is_set()
            ]
            raise TimeoutError(f"no session with {', '.join(absent)}") from None

    async def close(self) -> None:
        await self.reconcile(())

    def _serves(self, record: WorkerRecord) -> bool:
        if record.model_name == self._model_name:
            return True
        if record.model_name not in self._others and record.worker_id not in self._strangers:
            self._strangers.add(record.worker_id)
            _LOG.warning(
                "worker %s serves %r, this router %r: ignored",
                record.worker_id,
                record.model_name,
                self._model_name,
            )
        return False


def _same_session(record: WorkerRecord, known: WorkerRecord) -> bool:
    """Whether a session goes on: a worker that took another role tells of it itself."""
    return replace(record, role=known.role, layout=known.layout) == known
