"""How far a service is from what its spec asks for, and which old parts must stay meanwhile.

The order of an upgrade: the target's pool starts beside the serving one; when it runs, the routers
roll over to it; each old router ends once it is idle; when the last has gone, so does the old pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from k8s.operator import status as report
from k8s.operator.objects import Key, Manifest, number, text
from k8s.operator.observed import (
    Observed,
    PoolState,
    RouterState,
    label,
    pool_state,
    router_state,
)
from k8s.operator.render.parts import selector
from k8s.operator.render.routers import ports
from k8s.operator.service import LABEL_REVISION, ROLES, Role, Service
from k8s.operator.status import Condition

_GRACE_S = 60.0  # beyond what kubelets were told, before a pod counts as lost


@dataclass(frozen=True, slots=True)
class Rollout:
    """One look at a service that is not being deleted."""

    service: Service
    router: RouterState
    target: dict[Role, PoolState]  # of the revision that the spec asks for
    serving: dict[Role, PoolState]  # of the revision that the routers use
    switch: bool  # whether the routers are to use the target
    revisions_in_use: frozenset[str]
    configs_in_use: frozenset[str]
    draining: bool  # an old pool waits for its routers
    drain_since: str
    starting_since: str
    start_late: bool

    def size(self, role: Role) -> int:
        return self.service.size(role)

    @property
    def target_ready(self) -> bool:
        return all(self.target[role].running for role in ROLES if self.size(role))

    @property
    def switched(self) -> bool:
        return self.router.revision == self.service.revision

    @property
    def scaled(self) -> bool:
        return all(self.target[role].ready == self.size(role) for role in ROLES)

    @property
    def complete(self) -> bool:
        return (
            self.target_ready
            and self.switched
            and self.router.settled
            and self.scaled
            and not self.draining
        )

    def conditions(self, observed: Observed) -> list[Condition]:
        draining = Condition("Draining", False, "Serving", "nothing is drained")
        if self.draining:
            waiting = f": {observed.in_flight}" if observed.in_flight is not None else ""
            draining = Condition(
                "Draining",
                True,
                "OldPool",
                f"an old pool stays until its routers are idle{waiting}",
            )
        return [
            self._ready(),
            self._progressing(),
            self._degraded(observed),
            draining,
            Condition("SafeToDelete", False, "NotDraining", "deletion drains first"),
        ]

    def _ready(self) -> Condition:
        if self.router.ready:
            name = self.service.spec.model.name
            return Condition("Ready", True, "Serving", f"routers serve {name}")
        if not self.target_ready:
            return Condition("Ready", False, "PoolStarting", self._pools_told())
        return Condition("Ready", False, "RoutersStarting", "no router is ready yet")

    def _progressing(self) -> Condition:
        if not self.target_ready:
            return Condition("Progressing", True, "PoolStarting", self._pools_told())
        if not (self.switched and self.router.settled):
            message = f"routers move to revision {self.service.revision}"
            return Condition("Progressing", True, "RoutersRolling", message)
        if self.draining:
            message = "requests of the old revision are being finished"
            return Condition("Progressing", True, "OldPoolDraining", message)
        if not self.scaled:
            return Condition("Progressing", True, "Scaling", self._pools_told())
        return Condition("Progressing", False, "Complete", "everything is as the spec says")

    def _degraded(self, observed: Observed) -> Condition:
        if "RayService" in observed.missing_kinds:
            message = "this cluster does not know RayService (ray.io/v1): install KubeRay"
            return Condition("Degraded", True, "KubeRayMissing", message)
        for role in ROLES:
            state = self.target[role]
            if self.size(role) and state.failed:
                message = f"the {role} pool is {state.status}: {state.message or 'no reason given'}"
                return Condition("Degraded", True, "PoolFailed", message)
        if self.start_late:
            message = (
                f"not up after kubernetes.start_timeout_s "
                f"{self.service.spec.kubernetes.start_timeout_s} s: {self._pools_told()}"
            )
            return Condition("Degraded", True, "StartTimedOut", message)
        prefill_down = self.size("prefill") and not self.serving["prefill"].running
        if self.router.ready and self.serving["decode"].running and prefill_down:
            message = "no prefill worker is healthy; decode workers read the prompts"
            return Condition("Degraded", True, "PrefillDown", message)
        return Condition("Degraded", False, "AsExpected", "nothing is wrong")

    def _pools_told(self) -> str:
        return ", ".join(
            f"{role} {self.target[role].ready}/{self.size(role)} "
            f"{self.target[role].status or 'not reported yet'}"
            for role in ROLES
            if self.size(role)
        )

    def status(self, before: Manifest, found: list[Condition], now: datetime) -> dict[str, object]:
        service = self.service
        # While the target is starting, what serves is what people count on.
        shown = self.target if self.switch else self.serving
        pools: dict[str, object] = {}
        for role in ROLES:
            labels = ",".join(f"{k}={v}" for k, v in selector(service, role).items())
            pools[role] = {
                "desired": self.size(role),
                "ready": shown[role].ready,
                "summary": f"{shown[role].ready}/{self.size(role)}",
                "selector": labels,
            }
        _, http = ports(service)
        status: dict[str, object] = {
            "phase": report.phase(found),
            "observedGeneration": service.generation,
            "revision": self.router.revision,
            **pools,
            "ratio": f"{shown['prefill'].ready}:{shown['decode'].ready}",
            "endpoint": f"{service.name}.{service.namespace}.svc:{http}",
            "conditions": report.conditions(found, before, service.generation, now),
        }
        if self.starting_since:
            status["startingSince"] = self.starting_since
        if self.drain_since:
            status["drain"] = {"since": self.drain_since}
        return status


def plan_rollout(
    resource: Manifest, service: Service, observed: Observed, now: datetime
) -> Rollout:
    """What is there of each revision, and what has to stay."""
    router = router_state(observed.objects.get(Key("Deployment", f"{service.name}-router")))
    target = _pools(service, observed, service.revision)
    serving = _pools(service, observed, router.revision)
    running = all(target[role].running for role in ROLES if service.size(role))
    # An old pool that serves nobody is no reason to wait: it may hold the GPUs that are needed.
    switch = router.revision in ("", service.revision) or running or not router.ready
    in_use = {service.revision}
    configs = {router.config}
    if not switch:
        in_use.add(router.revision)
    waiting = observed.router_revisions - in_use if switch else set()
    existing = {label(manifest, LABEL_REVISION) for manifest in observed.of_kind("RayService")}
    draining = bool(waiting & existing)
    since = text(resource, "status", "drain", "since") if draining else ""
    if draining and not since:
        since = report.timestamp(now)
    lost = report.seconds_since(since, now) > service.spec.kubernetes.drain_timeout_s + _GRACE_S
    if not lost:
        in_use |= observed.router_revisions
        configs |= observed.router_configs
    starting = "" if running else text(resource, "status", "startingSince")
    same_spec = number(resource, "status", "observedGeneration") == service.generation
    if not running and (not starting or _new_target(resource, service, same_spec, observed)):
        starting = report.timestamp(now)
    late = report.seconds_since(starting, now) > service.spec.kubernetes.start_timeout_s
    return Rollout(
        service=service,
        router=router,
        target=target,
        serving=serving,
        switch=switch,
        revisions_in_use=frozenset(in_use),
        configs_in_use=frozenset(configs),
        draining=draining and not lost,
        drain_since=since,
        starting_since=starting,
        start_late=late,
    )


def _new_target(resource: Manifest, service: Service, same_spec: bool, observed: Observed) -> bool:
    """Whether the wait for a start begins anew, because its pool has yet to be made."""
    return not same_spec and Key("RayService", service.pool_name) not in observed.objects


def _pools(service: Service, observed: Observed, revision: str) -> dict[Role, PoolState]:
    ray = observed.objects.get(Key("RayService", f"{service.name}-{revision}"))
    return {
        role: pool_state(
            ray, observed.pods_of(role, revision), service.pods(role).pods_per_worker, role
        )
        for role in ROLES
    }
