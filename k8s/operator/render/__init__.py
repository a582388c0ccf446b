"""From one service to the objects that make it run: pure functions, nothing is asked or written."""

from __future__ import annotations

from k8s.operator.render.network import network_policies
from k8s.operator.render.parts import stamped
from k8s.operator.render.pools import accounts, pool_budgets, ray_service
from k8s.operator.render.routers import (
    router_budget,
    router_config,
    router_deployment,
    router_scaler,
    router_service,
    service_monitor,
)
from k8s.operator.render.store import store_objects
from k8s.operator.service import Service

Rendered = dict[str, object]


def base(service: Service, accepting: bool = True) -> list[Rendered]:
    """What every revision shares; with `accepting` false the routers get no new connections."""
    objects = [
        *accounts(service),
        *store_objects(service),
        router_service(service, accepting),
        router_budget(service),
        *router_scaler(service),
        *pool_budgets(service),
        *network_policies(service),
        *service_monitor(service),
    ]
    return [stamped(service, manifest) for manifest in objects]


def pool(service: Service) -> Rendered:
    """The RayService of the service's revision."""
    return stamped(service, ray_service(service))


def routers(service: Service) -> list[Rendered]:
    """The routers of the service's revision, and the file that they read."""
    return [
        stamped(service, manifest)
        for manifest in (router_config(service), router_deployment(service))
    ]


def everything(service: Service) -> list[Rendered]:
    """All objects of a service that runs undisturbed."""
    return [*base(service), pool(service), *routers(service)]
