"""The operator's decisions: (resource, what is there, time) -> what to write. Nothing else decides.

It keeps no memory of its own: what a later reconcile must know stands in the resource's status or
follows from the objects, so an operator may be killed at any point and another goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from k8s.operator import goodput, scaling
from k8s.operator import status as report
from k8s.operator.actions import (
    Action,
    Announce,
    Delete,
    ForgetScaling,
    SetFinalizers,
    WriteStatus,
    applies,
)
from k8s.operator.deletion import Deletion, plan_deletion
from k8s.operator.objects import Key, Manifest, at, key_of, mapping, sequence, text
from k8s.operator.observed import Observed, label
from k8s.operator.render import base, pool, routers
from k8s.operator.render.routers import config_name, ports
from k8s.operator.rollout import Rollout, plan_rollout
from k8s.operator.service import FINALIZER, LABEL_REVISION, Identity, Service
from k8s.operator.status import Condition
from orchestrator.spec import SpecError, refuse_unbuilt, validated

_RESYNC_S = 60.0
_PROGRESS_S = 5.0
_DRAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to do, in this order, and when to look again if nothing happens before."""

    actions: tuple[Action, ...] = ()
    again_s: float | None = None


def reconcile(
    resource: Manifest, observed: Observed, now: datetime, default_image: str = ""
) -> Outcome:
    """What one look at a TandemService leads to."""
    identity = Identity.of(resource)
    deleting = bool(text(resource, "metadata", "deletionTimestamp"))
    try:
        service: Service | None = _service(resource, identity, default_image, deleting)
    except SpecError as error:
        if not deleting:
            return _refused(resource, identity, error, now)
        service = None
    if deleting:
        return _delete(resource, identity, service, observed, now)
    assert service is not None
    return _serve(resource, service, observed, now)


class _NotBuiltError(SpecError):
    """A spec that a later version will serve."""


def _service(resource: Manifest, identity: Identity, default_image: str, deleting: bool) -> Service:
    """Raises SpecError with every fault, each naming its field and the fix."""
    spec = validated(mapping(resource, "spec"))
    active = spec.autoscaling.mode == "active"
    service = identity.with_spec(spec, default_image, scaling.wanted(resource) if active else None)
    problems = []
    if not service.image:
        problems.append("kubernetes.image is empty and the operator has no --image: set one")
    grpc, http = ports(service)
    if 0 in (grpc, http) or grpc == http:
        problems.append(
            f"router.grpc {spec.router.grpc} and router.http {spec.router.http}: "
            "a Service needs two different ports above 0"
        )
    if spec.security.tls is not None:
        problems.append(
            "security.tls is set, and probes and hooks of pods speak plainly: "
            "leave it null and terminate TLS at a Gateway"
        )
    if problems:
        raise SpecError(problems)
    if not deleting:
        try:
            refuse_unbuilt(spec, operator=True)
        except SpecError as error:
            raise _NotBuiltError(error.problems) from error
    return service


def _refused(resource: Manifest, identity: Identity, error: SpecError, now: datetime) -> Outcome:
    """Say what is wrong and touch nothing: what served before goes on serving."""
    reason = "NotBuilt" if isinstance(error, _NotBuiltError) else "InvalidSpec"
    message = "; ".join(error.problems)
    serving = report.reason_before(resource, "Ready").startswith("True/")
    found = [
        Condition("Ready", serving, "Serving" if serving else reason, _WAS if serving else message),
        Condition("Progressing", False, reason, "nothing is changed until the spec is corrected"),
        Condition("Degraded", True, reason, message),
        Condition("Draining", False, "Serving", "nothing is drained"),
        Condition("SafeToDelete", False, "NotDraining", "deletion drains first"),
    ]
    status = {
        **report.own(resource),
        "phase": report.phase(found),
        "observedGeneration": identity.generation,
        "conditions": report.conditions(found, resource, identity.generation, now),
    }
    return Outcome((*_announcements(resource, found), *_status(resource, status)))


_WAS = "the last valid spec is being served"


def _serve(resource: Manifest, service: Service, observed: Observed, now: datetime) -> Outcome:
    rollout = plan_rollout(resource, service, observed, now)
    wanted = [*base(service), pool(service)]
    if rollout.switch:
        wanted += routers(service)
    actions: list[Action] = []
    finalizers = _finalizers(resource)
    if FINALIZER not in finalizers:
        actions.append(SetFinalizers((*finalizers, FINALIZER)))
    if "RayService" in observed.missing_kinds:
        # Routers without a pool would only restart; wait for KubeRay with nothing half made.
        wanted = []
    actions += applies(wanted, observed)
    actions += _prune(service, wanted, observed, rollout)
    found = rollout.conditions(observed)
    actions += _announcements(resource, found)
    actions += _scaling_news(resource, service)
    status = rollout.status(resource, found, now)
    figure = goodput.shown(observed.goodput, text(resource, "status", "goodput"))
    if figure:
        status["goodput"] = figure
    decision = _last_decision(resource, service)
    if decision is not None:
        status["decision"] = text(decision, "id")
    actions += _status(resource, status)
    settled = rollout.complete and not any(c.type == "Degraded" and c.value for c in found)
    return Outcome(tuple(actions), _RESYNC_S if settled else _PROGRESS_S)


def _last_decision(resource: Manifest, service: Service) -> object | None:
    """The newest one of the autoscaler that the spec asks for."""
    if service.spec.autoscaling.mode == "off":
        return None
    return next(reversed(scaling.decisions(resource)), None)


def _scaling_news(resource: Manifest, service: Service) -> list[Action]:
    """Tell people of a decision, once, and take back those of an autoscaler that was stopped."""
    mode = service.spec.autoscaling.mode
    stale = mode == "off" and scaling.is_there(resource)
    if stale or (mode != "active" and scaling.wanted(resource)):
        return [ForgetScaling()]
    decision = _last_decision(resource, service)
    if decision is None or text(decision, "id") == text(resource, "status", "decision"):
        return []
    reason = "Scaled" if mode == "active" else "ScalingAdvised"
    return [Announce("Normal", reason, text(decision, "summary"))]


def _prune(
    service: Service, wanted: Sequence[Manifest], observed: Observed, rollout: Rollout
) -> list[Action]:
    """Remove what the spec no longer asks for, except what routers that drain still need."""
    if not wanted:
        return []
    keep = {key_of(manifest) for manifest in wanted}
    keep.add(Key("Deployment", f"{service.name}-router"))
    keep |= {Key("ConfigMap", name) for name in rollout.configs_in_use | {config_name(service)}}
    for manifest in observed.of_kind("RayService"):
        if label(manifest, LABEL_REVISION) in rollout.revisions_in_use:
            keep.add(key_of(manifest))
    return [
        Delete(key)
        for key, manifest in sorted(observed.objects.items())
        if key not in keep and not text(manifest, "metadata", "deletionTimestamp")
    ]


def _delete(
    resource: Manifest,
    identity: Identity,
    service: Service | None,
    observed: Observed,
    now: datetime,
) -> Outcome:
    finalizers = _finalizers(resource)
    if FINALIZER not in finalizers:
        return Outcome()
    deletion: Deletion = plan_deletion(resource, identity, service, observed, now)
    actions: list[Action] = [*deletion.actions]
    actions += _announcements(resource, deletion.conditions)
    status = {
        **report.own(resource),
        "phase": report.phase(deletion.conditions),
        "observedGeneration": identity.generation,
        "drain": deletion.drain,
        "conditions": report.conditions(deletion.conditions, resource, identity.generation, now),
    }
    actions += _status(resource, status)
    if not deletion.done:
        return Outcome(tuple(actions), _DRAIN_S)
    left = tuple(name for name in finalizers if name != FINALIZER)
    return Outcome((*actions, SetFinalizers(left)))


def _finalizers(resource: Manifest) -> tuple[str, ...]:
    return tuple(str(name) for name in sequence(resource, "metadata", "finalizers"))


def _status(resource: Manifest, status: dict[str, object]) -> list[Action]:
    return [WriteStatus(status)] if report.changed(resource, status) else []


def _announcements(resource: Manifest, found: Sequence[Condition]) -> list[Action]:
    """An Event for each condition that has become true, or Ready no more."""
    events: list[Action] = []
    for condition in found:
        before = report.reason_before(resource, condition.type)
        if before == f"{condition.status}/{condition.reason}" or condition.value is None:
            continue
        lost = condition.type == "Ready" and before.startswith("True/") and not condition.value
        recovered = condition.type == "Degraded" and before.startswith("True/")
        if condition.value or lost or (recovered and at(resource, "status") is not None):
            bad = lost or (condition.type == "Degraded" and condition.value)
            kind = "Warning" if bad else "Normal"
            events.append(Announce(kind, condition.reason, condition.message))
    return events


def asks_in_flight(resource: Manifest, observed: Observed) -> bool:
    """Whether routers have to be asked what they work on: only while something drains."""
    if text(resource, "metadata", "deletionTimestamp"):
        return bool(observed.pods_of("router"))
    return len(observed.router_revisions) > 1
