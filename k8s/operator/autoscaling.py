"""Follows the traffic of services that ask for it, each in a task of the operator that leads.

Whoever decides is brought from outside (`Sizer`); what it decides goes into the service's status,
and from there through an ordinary look of the operator into the pools. Routers take questions from
the operator anyway, so nothing here needs a right or a port that it does not have.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from k8s.operator.api import ApiError
from k8s.operator.objects import Manifest, mapping, text
from k8s.operator.queue import ServiceKey
from k8s.operator.scaling import Pools
from k8s.operator.service import Identity, digest
from orchestrator.spec import SpecError, validated

_LOG = logging.getLogger(__name__)


class Sizer(Protocol):
    """Decides how many workers the pools of one service have."""

    async def step(self, now_s: float) -> None:
        """Look at the traffic once, and tell the pools what follows from it."""

    def close(self) -> None:
        """Nothing that it began goes on."""


SizerFactory = Callable[[Pools], Sizer]
# `status.scaling` of a service is to be this. Raises ApiError.
Write = Callable[[ServiceKey, Mapping[str, object]], Awaitable[None]]
# Addresses of the routers of a service that can be asked now; blocks, raises ApiError.
Addresses = Callable[[ServiceKey], Sequence[str]]


@dataclass(frozen=True, slots=True)
class _Followed:
    what: str  # changes with anything that the decisions rest on
    task: asyncio.Task[None]


class Autoscaling:
    """Owned by one event loop. `follow` is told of every service that has changed."""

    def __init__(self, sizers: SizerFactory, routers: Addresses, write: Write) -> None:
        self._sizers = sizers
        self._routers = routers
        self._write = write
        self._followed: dict[ServiceKey, _Followed] = {}

    def follow(self, key: ServiceKey, resource: Manifest) -> None:
        """Begin, go on with or end following a service, whatever its spec now asks for."""
        what = digest([text(resource, "metadata", "uid"), mapping(resource, "spec")])
        followed = self._followed.get(key)
        ending = bool(text(resource, "metadata", "deletionTimestamp"))
        if followed is not None and followed.what == what and not ending:
            return
        self.forget(key)
        pools = None if ending else self._pools(key, resource)
        if pools is not None:
            task = asyncio.create_task(self._run(key, pools, self._sizers(pools)))
            self._followed[key] = _Followed(what, task)

    def forget(self, key: ServiceKey) -> None:
        """The service has gone, or is not to be followed any more."""
        followed = self._followed.pop(key, None)
        if followed is not None:
            followed.task.cancel()

    async def stop(self) -> None:
        """Follow nothing any more."""
        tasks = [followed.task for followed in self._followed.values()]
        for key in list(self._followed):
            self.forget(key)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _pools(self, key: ServiceKey, resource: Manifest) -> Pools | None:
        """None when nobody has to follow it: not asked for, fixed pools, a wrong spec."""
        try:
            spec = validated(mapping(resource, "spec"))
        except SpecError:
            return None
        fixed = all(pool.workers.min == pool.workers.max for pool in (spec.prefill, spec.decode))
        if spec.autoscaling.mode == "off" or fixed:
            return None
        service = Identity.of(resource).with_spec(spec, "")
        return Pools(resource, service, lambda: self._routers(key))

    async def _run(self, key: ServiceKey, pools: Pools, sizer: Sizer) -> None:
        """Every period, until cancelled."""
        spec = pools.service.spec.autoscaling
        _LOG.info("%s/%s: autoscaling is %s", key.namespace, key.name, spec.mode)
        try:
            while True:
                await asyncio.sleep(spec.period_s)
                await self._step(key, pools, sizer)
        finally:
            sizer.close()

    async def _step(self, key: ServiceKey, pools: Pools, sizer: Sizer) -> None:
        try:
            await sizer.step(asyncio.get_running_loop().time())
        except ApiError as error:
            _LOG.warning("%s/%s: autoscaling waits: %s", key.namespace, key.name, error)
        except Exception:  # noqa: BLE001 - logged, and tried again
            # A fault of ours in one service must not end the operator of all others.
            _LOG.exception("%s/%s: autoscaling failed", key.namespace, key.name)
        scaling = pools.take_unwritten()
        if scaling is None:
            return
        try:
            await self._write(key, scaling)
        except ApiError as error:
            pools.not_written()
            _LOG.warning("%s/%s: sizes not written: %s", key.namespace, key.name, error)
