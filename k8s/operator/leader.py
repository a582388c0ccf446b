"""At most one operator works: a Lease says which, by the election of the official client."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from kubernetes import client
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

_LOG = logging.getLogger(__name__)
_LEASE_S = 15
_RENEW_WITHIN_S = 10
_TRY_EVERY_S = 2


@dataclass(frozen=True, slots=True)
class LeaseName:
    """The Lease that operators of one cluster compete for."""

    namespace: str
    name: str = "tandem-operator"


class Leadership:
    """Competes in the background; sets `stop` when leadership is lost."""

    def __init__(
        self, lease: LeaseName, server: client.Configuration, stop: threading.Event
    ) -> None:
        self._stop = stop
        self._leads = threading.Event()
        self._finished = threading.Event()
        identity = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        # The lock of the client takes its server from here and nowhere else.
        client.Configuration.set_default(server)
        lock = LeaseLock(lease.name, lease.namespace, identity)  # type: ignore[no-untyped-call]
        rules = electionconfig.Config(  # type: ignore[no-untyped-call]
            lock,
            lease_duration=_LEASE_S,
            renew_deadline=_RENEW_WITHIN_S,
            retry_period=_TRY_EVERY_S,
            onstarted_leading=self._started,
            onstopped_leading=self._lost,
        )
        self._election = leaderelection.LeaderElection(rules)  # type: ignore[no-untyped-call]
        self._thread = threading.Thread(
            target=self._election.run, name="leader-election", daemon=True
        )

    def _started(self) -> None:
        self._leads.set()
        self._finished.wait()

    def _lost(self) -> None:
        if not self._finished.is_set():
            _LOG.error("another operator may lead now: stopping")
        self._stop.set()

    def wait(self) -> bool:
        """Until this process leads; False when it is to stop instead."""
        while not self._leads.wait(0.5):
            if self._stop.is_set():
                return False
        return True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The lease runs out by itself; the thread ends with the process.
        self._finished.set()
