"""The order in which a service goes, so that no request is lost and nothing stays.

Routers first: the Service stops sending them anything, and each finishes its requests in its
preStop hook. Then the pools, when no router is left to use them. Then everything else. A kubelet
that has died keeps pods for ever, so each stage ends at the time that pods were given.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from k8s.operator import status as report
from k8s.operator.actions import Action, Delete, applies
from k8s.operator.objects import Key, Manifest, text
from k8s.operator.observed import Observed
from k8s.operator.render import base
from k8s.operator.service import Identity, Service
from k8s.operator.status import Condition

_GRACE_S = 60.0
_DEFAULT_DRAIN_S = 600
_ROUTER_KINDS = ("Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget")


@dataclass(frozen=True, slots=True)
class Deletion:
    """One look at a service that is being deleted."""

    actions: tuple[Action, ...]
    conditions: tuple[Condition, ...]
    drain: dict[str, object]
    done: bool


def plan_deletion(
    resource: Manifest,
    identity: Identity,
    service: Service | None,
    observed: Observed,
    now: datetime,
) -> Deletion:
    """The next stage. `service` is None when the spec is wrong; then nothing can be rendered."""
    since = text(resource, "status", "drain", "since") or report.timestamp(now)
    limit_s = service.spec.kubernetes.drain_timeout_s if service else _DEFAULT_DRAIN_S
    waited_s = report.seconds_since(since, now)
    drain: dict[str, object] = {"since": since}

    routers = [
        key
        for key in observed.objects
        if key.kind in _ROUTER_KINDS and key.name == f"{identity.name}-router"
    ]
    if routers or (observed.pods_of("router") and waited_s <= limit_s + _GRACE_S):
        actions: list[Action] = []
        if service is not None:
            closed = [m for m in base(service, accepting=False) if _is_entrance(m, identity)]
            actions += applies(closed, observed)
        actions += _deletes(observed, routers)
        load = observed.in_flight
        drain["inFlight"] = str(load) if load is not None else "unknown"
        message = f"routers take no new requests and finish theirs: {drain['inFlight']}"
        return Deletion(tuple(actions), _draining(message, "InFlight"), drain, done=False)

    pools = [key for key in observed.objects if key.kind == "RayService"]
    pods = [pod for part in ("prefill", "decode", "head") for pod in observed.pods_of(part)]
    if pools or (pods and waited_s <= 2 * (limit_s + _GRACE_S)):
        message = "every request is finished; workers are stopping"
        return Deletion(
            tuple(_deletes(observed, pools)), _draining(message, "WorkersStopping"), drain, False
        )

    rest = tuple(_deletes(observed, list(observed.objects)))
    safe = (
        Condition("Ready", False, "Deleting", "the service is being deleted"),
        Condition("Progressing", False, "Deleting", "the service is being deleted"),
        Condition("Degraded", False, "Deleting", "the service is being deleted"),
        Condition("Draining", False, "Drained", "no router and no worker is left"),
        Condition("SafeToDelete", True, "Drained", "no router and no worker is left"),
    )
    return Deletion(rest, safe, drain, done=True)


def _draining(message: str, reason: str) -> tuple[Condition, ...]:
    return (
        Condition("Ready", False, "Deleting", "the service is being deleted"),
        Condition("Progressing", True, "Deleting", message),
        Condition("Degraded", False, "Deleting", "the service is being deleted"),
        Condition("Draining", True, "Deleting", message),
        Condition("SafeToDelete", False, reason, message),
    )


def _is_entrance(manifest: Manifest, identity: Identity) -> bool:
    return manifest["kind"] == "Service" and text(manifest, "metadata", "name") == identity.name


def _deletes(observed: Observed, keys: list[Key]) -> list[Action]:
    return [
        Delete(key)
        for key in sorted(keys)
        if not text(observed.objects[key], "metadata", "deletionTimestamp")
    ]
