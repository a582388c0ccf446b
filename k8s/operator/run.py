"""The operator as a process: kopf watches, the queue decides when, the reconciler does the work."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import kopf
from kubernetes import client, config

from k8s.crds.definition import GROUP, PLURAL, VERSION
from k8s.operator.api import Api
from k8s.operator.autoscaling import Autoscaling, SizerFactory
from k8s.operator.leader import Leadership, LeaseName
from k8s.operator.queue import ServiceKey, WorkQueue
from k8s.operator.reconciler import Reconciler, Routers
from k8s.operator.scaling import askable
from k8s.operator.service import LABEL_SERVICE

_WATCH_S = 300  # the server ends a watch after this; a lost one is noticed by then


@dataclass(frozen=True, slots=True)
class Settings:
    """How an operator runs. Without a kubeconfig it takes the one of its pod, or of its user."""

    image: str = ""
    kubeconfig: Path | None = None
    context: str | None = None
    namespaces: tuple[str, ...] = ()  # none: all
    lease: LeaseName | None = None  # none: no other operator runs


def connection(settings: Settings) -> client.Configuration:
    """How to reach the API server. Raises ConfigException when there is no way."""
    found = client.Configuration()
    if settings.kubeconfig is None and settings.context is None:
        try:
            config.load_incluster_config(  # type: ignore[no-untyped-call]
                client_configuration=found
            )
            return found
        except config.ConfigException:
            pass  # not in a pod: the user's own file
    path = str(settings.kubeconfig) if settings.kubeconfig is not None else None
    config.load_kube_config(  # type: ignore[no-untyped-call]
        path, context=settings.context, client_configuration=found
    )
    return found


def run(settings: Settings, routers: Routers, sizers: SizerFactory) -> None:
    """Until SIGTERM or SIGINT, or until another operator leads."""
    _quiet()
    server = connection(settings)
    # The queue repeats whole looks, so a request is never repeated below it.
    server.retries = 0
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        if settings.lease is not None:
            leadership = Leadership(settings.lease, server, stop)
            stack.enter_context(leadership)
            if not leadership.wait():
                return
        kopf.run(
            registry=_registry(settings, server, routers, sizers, stop),
            settings=_kopf_settings(settings.namespaces),
            namespaces=settings.namespaces,
            clusterwide=not settings.namespaces,
            standalone=True,
            stop_flag=stop,
        )


def _quiet() -> None:
    # One line for each event of each object says nothing that our own lines do not.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)


def _kopf_settings(namespaces: Sequence[str]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    # Namespaces that are named need not be looked for, which would take rights on all of them. A
    # KubeRay that is installed later is then noticed by looks alone, not by watching.
    settings.scanning.disabled = bool(namespaces)
    settings.posting.enabled = False
    settings.watching.server_timeout = _WATCH_S
    settings.watching.client_timeout = _WATCH_S + 30
    return settings


def _registry(
    settings: Settings,
    server: client.Configuration,
    routers: Routers,
    sizers: SizerFactory,
    stop: threading.Event,
) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    api = Api(client.ApiClient(server))
    reconciler = Reconciler(api, routers, lambda: datetime.now(UTC), settings.image)

    async def look(key: ServiceKey) -> float | None:
        return await asyncio.to_thread(reconciler.reconcile, key.namespace, key.name)

    async def write(key: ServiceKey, scaling: Mapping[str, object]) -> None:
        await asyncio.to_thread(api.write_scaling, key.namespace, key.name, scaling)

    def addresses(key: ServiceKey) -> list[str]:
        return askable(api.pods(key.namespace, key.name, "router"))

    queue = WorkQueue(look)
    autoscaling = Autoscaling(sizers, addresses, write)
    tasks: list[asyncio.Task[None]] = []

    @kopf.on.login(registry=registry)
    def login(**_: object) -> kopf.ConnectionInfo:
        return _connection_info(connection(settings))

    @kopf.on.startup(registry=registry)
    async def start(**_: object) -> None:
        tasks.append(asyncio.create_task(queue.run()))

    @kopf.on.cleanup(registry=registry)
    async def finish(**_: object) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await autoscaling.stop()
        # kopf waits for the flag in a thread, which would outlive a stop by signal.
        stop.set()

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def service_changed(
        name: str | None, namespace: str | None, event: kopf.RawEvent, body: kopf.Body, **_: object
    ) -> None:
        key = ServiceKey(str(namespace), str(name))
        if event["type"] == "DELETED":
            autoscaling.forget(key)
        else:
            autoscaling.follow(key, body)
        queue.add(key)

    owned = {LABEL_SERVICE: kopf.PRESENT}

    async def owned_changed(namespace: str | None, labels: kopf.Labels, **_: object) -> None:
        queue.add(ServiceKey(str(namespace), labels[LABEL_SERVICE]))

    kopf.on.event("apps", "v1", "deployments", labels=owned, registry=registry)(owned_changed)
    kopf.on.event("ray.io", "v1", "rayservices", labels=owned, registry=registry)(owned_changed)
    return registry


def _connection_info(server: client.Configuration) -> kopf.ConnectionInfo:
    """What kopf's own watching needs, from the same place as our requests."""
    token = server.get_api_key_with_prefix("BearerToken", alias="authorization")
    scheme, _, value = (token or "").partition(" ")
    return kopf.ConnectionInfo(
        server=server.host,
        ca_path=server.ssl_ca_cert,
        insecure=not server.verify_ssl,
        username=server.username,
        password=server.password,
        scheme=scheme if value else None,
        token=value or scheme or None,
        certificate_path=server.cert_file,
        private_key_path=server.key_file,
    )
