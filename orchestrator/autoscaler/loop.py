"""The autoscaler of a running cluster: observes its routers every period, decides, and acts.

The shell around `TandemPolicy`. It acts on two seams: a scaler that has pools be given so many
workers (Ray Serve's, `runtime/scaling.py`), and the routers, which flip roles.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol

from orchestrator.autoscaler.decisions import Decision
from orchestrator.autoscaler.ground import Ground
from orchestrator.autoscaler.live import LiveObserver
from orchestrator.autoscaler.observation import ROLES, Change, CountPolicy, Observation
from orchestrator.client import Client
from orchestrator.errors import UserError
from protos.tandem.v1 import admin_pb2
from router.core.events import Role

_LOG = logging.getLogger(__name__)


class Scaler(Protocol):
    """Has pools be given so many workers."""

    def counts(self) -> Mapping[Role, int]:
        """How many each pool was asked to have."""

    async def scale_pools(self, wanted: Mapping[Role, int]) -> str:
        """Ask for so many in these pools, all at once; in words, what that led to. Raises
        UserError."""


class DecisionLog(Protocol):
    """Keeps decisions: each is written when it is made, and again when it is acknowledged."""

    def write(self, decision: Decision) -> None:
        """A decision as it stands, in place of what was said of it before."""


class Routers(Protocol):
    """The routers of the cluster. Both calls block, and raise UserError when nobody answers."""

    def ask(self) -> Mapping[str, admin_pb2.GetStatusResponse]:
        """What each of them sees, by its address; silent ones are left out."""

    def flip(self, worker_id: str, role: Role) -> admin_pb2.FlipResponse:
        """Have a worker take a role, and wait until it has, or has said why not."""


class RouterCalls:
    """Routers at their addresses."""

    def __init__(self, addresses: Callable[[], Sequence[str]]) -> None:
        """`addresses` are those of the routers that run at the moment."""
        self._addresses = addresses

    def ask(self) -> dict[str, admin_pb2.GetStatusResponse]:
        answers: dict[str, admin_pb2.GetStatusResponse] = {}
        silent: UserError | None = None
        for address in self._addresses():
            with Client(address) as client:
                try:
                    answers[address] = client.status()
                except UserError as error:
                    silent = error
        if not answers:
            raise silent or UserError("no router can be asked", "wait until one is ready")
        return answers

    def flip(self, worker_id: str, role: Role) -> admin_pb2.FlipResponse:
        with Client(self._addresses()[0]) as client:
            return client.flip(worker_id, role)


class AutoscalerLoop:
    """Owns the policy of one cluster."""

    def __init__(
        self,
        policy: CountPolicy,
        ground: Ground,
        scaler: Scaler,
        routers: Routers,
        journal: DecisionLog,
        mode: Literal["active", "advisory"],
    ) -> None:
        self._policy = policy
        self._ground = ground
        self._scaler = scaler
        self._routers = routers
        self._journal = journal
        self._mode = mode
        self._observer = LiveObserver()
        self._flips: set[asyncio.Task[None]] = set()
        self._advised = ""
        self._waits_for = ""

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await asyncio.sleep(self._ground.period_s)
                await self.step(time.monotonic())
        finally:
            self.close()

    def close(self) -> None:
        """Wait for no flip any more."""
        for task in self._flips:
            task.cancel()

    async def step(self, now_s: float) -> Decision | None:
        """Look once, and do what is decided; None when nothing is."""
        try:
            answers = await asyncio.to_thread(self._routers.ask)
        except UserError as error:
            if error.message != self._waits_for:
                _LOG.warning("autoscaling waits: %s", error.message)
            self._waits_for = error.message
            return None
        self._waits_for = ""
        deployed = self._scaler.counts()
        observed = self._observer.observe(now_s, answers, deployed)
        have: dict[Role, int] = {role: observed.expected(role) for role in ROLES}
        change = self._policy(observed, have)
        if change.decision is None:
            self._advised = ""
            return None
        if self._mode == "advisory":
            return self._advise(change.decision)
        self._journal.write(change.decision)
        outcome = await self._act(change, observed, have, deployed)
        done = replace(change.decision, outcome=outcome)
        self._journal.write(done)
        _LOG.info("%s (%s)", done.summary(), outcome)
        return done

    def _advise(self, decision: Decision) -> Decision | None:
        """Say what would be done, once for as long as it is the same."""
        advice = decision.summary().partition(": ")[2]
        if advice == self._advised:
            return None
        self._advised = advice
        told = replace(decision, outcome="advisory: nothing was changed")
        self._journal.write(told)
        _LOG.info("advisory: %s", told.summary())
        return told

    async def _act(
        self,
        change: Change,
        observed: Observation,
        have: Mapping[Role, int],
        deployed: Mapping[Role, int],
    ) -> str:
        told: list[str] = []

        def flip(worker_id: str, role: Role) -> None:
            task = asyncio.create_task(self._flip(change, worker_id, role))
            self._flips.add(task)
            task.add_done_callback(self._flips.discard)
            told.append(f"{worker_id} drains to take the role {role}")

        for role in ROLES:
            for worker_id in _emptiest(observed, role, change.flips.get(role, 0)):
                flip(worker_id, role)
        wanted: dict[Role, int] = {}
        for role in ROLES:
            other: Role = "decode" if role == "prefill" else "prefill"
            more = change.counts[role] - have[role]
            more += change.flips.get(other, 0) - change.flips.get(role, 0)
            if not more:
                continue
            # A flipped worker stays one of the pool that started it: where the pool of its role has
            # none to give up it goes home, and its own pool shrinks when it has one too many.
            least, most = self._ground.least[role], self._ground.most[role]
            if more < 0:
                for worker_id in _guests(observed, role, least - deployed[role] - more):
                    flip(worker_id, other)
            workers = min(max(deployed[role] + more, least), most)
            if workers != deployed[role]:
                wanted[role] = workers
        if wanted:
            try:
                told.append(await self._scaler.scale_pools(wanted))
            except UserError as error:
                told.append(error.message)
        return "; ".join(told) or "nothing was left to do"

    async def _flip(self, change: Change, worker_id: str, role: Role) -> None:
        assert change.decision is not None
        try:
            answer = await asyncio.to_thread(self._routers.flip, worker_id, role)
            outcome = f"{worker_id} has taken the role {role}"
            if answer.role != role:
                outcome = f"{worker_id} remains {answer.role}: {answer.detail}"
        except UserError as error:
            outcome = f"{worker_id}: {error.message}"
        self._journal.write(replace(change.decision, outcome=outcome))
        _LOG.info("%s: %s", change.decision.decision_id, outcome)


def _emptiest(observed: Observation, role: Role, count: int) -> list[str]:
    """Workers of the other role that can take this one, those with the least to finish first."""
    here = [one for one in observed.workers if one.role != role and not one.leaving]
    here.sort(key=lambda one: (one.running, one.worker_id))
    return [one.worker_id for one in here[:count]]


def _guests(observed: Observation, role: Role, count: int) -> list[str]:
    """Workers of a role that the other pool has started, those with the least to finish first."""
    here = [
        one
        for one in observed.workers
        if one.role == role and one.home not in (None, role) and not one.leaving
    ]
    here.sort(key=lambda one: (one.running, one.worker_id))
    return [one.worker_id for one in here[: max(count, 0)]]
