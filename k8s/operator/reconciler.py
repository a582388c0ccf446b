"""One reconcile against a real API server: read everything, decide, write. Blocking, no loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from k8s.operator.actions import (
    Action,
    Announce,
    Apply,
    Delete,
    ForgetScaling,
    SetFinalizers,
    WriteStatus,
)
from k8s.operator.api import Api, ApiError
from k8s.operator.core import asks_in_flight, reconcile
from k8s.operator.goodput import LEAST_S, Sample, rate
from k8s.operator.kinds import BY_KIND, OWNED, TANDEM_SERVICE
from k8s.operator.objects import Key, Manifest, key_of, number, text
from k8s.operator.observed import InFlight, Observed, generation, router_addresses
from k8s.operator.service import FIELD_MANAGER, digest
from k8s.operator.status import timestamp

_LOG = logging.getLogger(__name__)


class Routers(Protocol):
    """Asks routers at their gRPC addresses; the command line brings the one that speaks gRPC.

    Neither method raises.
    """

    def in_flight(self, routers: Sequence[str]) -> InFlight:
        """What all of them still work on; a silent router is counted as such."""
        ...

    def met(self, routers: Sequence[str]) -> Mapping[str, int]:
        """Requests that met both targets since each of them began; silent ones are left out."""
        ...


class Reconciler:
    """Reconciles any TandemService; `api` says how many calls it took."""

    def __init__(
        self, api: Api, routers: Routers, now: Callable[[], datetime], default_image: str = ""
    ) -> None:
        self._api = api
        self._routers = routers
        self._now = now
        self._default_image = default_image
        # What objects became when this process applied them: the server may amend what it gets.
        self._settled: dict[str, dict[Key, str]] = {}
        self._met: dict[str, Sample] = {}

    def reconcile(self, namespace: str, name: str) -> float | None:
        """Do what one look leads to; seconds until the next, None when there is nothing to wait
        for. Raises ApiError; whatever was done before it stands, and the next look goes on."""
        began, before = time.monotonic(), self._api.calls
        resource = self._api.service(namespace, name)
        if resource is None:
            return None
        uid = text(resource, "metadata", "uid")
        observed = self._observe(resource, namespace, name, uid)
        outcome = reconcile(resource, observed, self._now(), self._default_image)
        version = text(resource, "metadata", "resourceVersion")
        for action in outcome.actions:
            version = self._perform(action, resource, version)
        if outcome.actions:
            calls, took_s = self._api.calls - before, time.monotonic() - began
            _LOG.info("%s/%s: reconciled in %.2f s, %d calls", namespace, name, took_s, calls)
        if outcome.again_s is None:
            self._settled.pop(uid, None)
            self._met.pop(uid, None)
        return outcome.again_s

    def _observe(self, resource: Manifest, namespace: str, name: str, uid: str) -> Observed:
        objects: dict[Key, Manifest] = {}
        missing: set[str] = set()
        for kind in OWNED:
            found = self._api.owned(kind, namespace, name)
            if found is None:
                missing.add(kind.kind)
                continue
            # Labels are anybody's to write: only what this very service owns is touched.
            objects.update({key_of(item): item for item in found if _owner(item) == uid})
        observed = Observed(
            objects=objects,
            pods=self._api.pods(namespace, name),
            missing_kinds=frozenset(missing),
            settled=self._settled.get(uid, {}),
        )
        if asks_in_flight(resource, observed):
            load = self._routers.in_flight(router_addresses(observed))
            return replace(observed, in_flight=load)
        return replace(observed, goodput=self._goodput(uid, router_addresses(observed)))

    def _goodput(self, uid: str, routers: Sequence[str]) -> float | None:
        """Of the time since the routers were last asked; None while that is too short."""
        now_s, before = self._now().timestamp(), self._met.get(uid)
        if not routers or (before is not None and now_s - before.at_s < LEAST_S):
            return None
        sample = self._met[uid] = Sample(now_s, self._routers.met(routers))
        return rate(before, sample) if before is not None else None

    def _perform(self, action: Action, resource: Manifest, version: str) -> str:
        """Returns the resource's version after it."""
        namespace = text(resource, "metadata", "namespace")
        name = text(resource, "metadata", "name")
        uid = text(resource, "metadata", "uid")
        match action:
            case Apply(manifest):
                key = key_of(manifest)
                _LOG.info("%s/%s: applying %s %s", namespace, name, key.kind, key.name)
                result = self._api.apply(BY_KIND[key.kind], namespace, manifest)
                self._settled.setdefault(uid, {})[key] = generation(result)
            case Delete(key):
                _LOG.info("%s/%s: deleting %s %s", namespace, name, key.kind, key.name)
                self._api.delete(BY_KIND[key.kind], namespace, key.name)
            case SetFinalizers(finalizers):
                self._api.set_finalizers(namespace, name, version, finalizers)
            case WriteStatus(status):
                written = self._api.write_status(namespace, name, status)
                return text(written, "metadata", "resourceVersion")
            case ForgetScaling():
                self._api.write_scaling(namespace, name, {})
            case Announce():
                _LOG.info("%s/%s: %s: %s", namespace, name, action.reason, action.message)
                try:
                    self._api.announce(namespace, self._event(action, resource))
                except ApiError as error:
                    # News are for people; the work does not wait for them.
                    _LOG.warning("%s/%s: event not told: %s", namespace, name, error)
        return version

    def _event(self, action: Announce, resource: Manifest) -> dict[str, object]:
        now = timestamp(self._now())
        name = text(resource, "metadata", "name")
        namespace = text(resource, "metadata", "namespace")
        uid = text(resource, "metadata", "uid")
        count = number(resource, "metadata", "generation")
        # The same news of the same spec has the same name, so a restart does not tell it twice.
        what = digest([uid, count, action.reason, action.message])[:16]
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{name}.{what}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": TANDEM_SERVICE.api_version,
                "kind": TANDEM_SERVICE.kind,
                "name": name,
                "namespace": namespace,
                "uid": uid,
            },
            "type": action.kind,
            "reason": action.reason,
            "message": action.message[:1024],
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": FIELD_MANAGER,
            "reportingInstance": FIELD_MANAGER,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


def _owner(manifest: Manifest) -> str:
    metadata = manifest.get("metadata")
    owners = metadata.get("ownerReferences", []) if isinstance(metadata, dict) else []
    return next((text(owner, "uid") for owner in owners if owner.get("controller")), "")
