"""`tandem operator run`: the Kubernetes operator, put together with what it needs of the rest.

The operator itself knows only the spec. How to ask a router what it works on is brought here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.failures import reported
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from k8s.operator.observed import InFlight
    from protos.tandem.v1 import admin_pb2

operator = typer.Typer(name="operator", help="Run Tandem on Kubernetes.", no_args_is_help=True)

_PARALLEL = 8


class GrpcRouters:
    """Asks each router over its admin API."""

    def in_flight(self, routers: Sequence[str]) -> InFlight:
        """Queued and running requests over all; a router that does not answer is counted."""
        from k8s.operator.observed import InFlight

        known = _statuses(routers).values()
        requests = sum(one.queued_requests + one.running_requests for one in known)
        return InFlight(requests, unreachable=len(routers) - len(known))

    def met(self, routers: Sequence[str]) -> Mapping[str, int]:
        """Requests that met both targets; a router that does not answer is left out."""
        return {name: one.traffic.met_both for name, one in _statuses(routers).items()}


def _statuses(routers: Sequence[str]) -> dict[str, admin_pb2.GetStatusResponse]:
    if not routers:
        return {}
    with ThreadPoolExecutor(_PARALLEL) as pool:
        answers = list(pool.map(_status, routers))
    return {name: one for name, one in zip(routers, answers, strict=True) if one is not None}


def _status(router: str) -> admin_pb2.GetStatusResponse | None:
    from orchestrator.client import Client

    with Client(router) as client:
        try:
            return client.status()
        except UserError:
            return None


@operator.callback()
def _root() -> None:
    """Keeps `run` a subcommand although it is the only one."""


@operator.command("run")
@reported
def run(
    kubeconfig: Annotated[
        Path | None, typer.Option(help="How to reach the API server; default: as kubectl does.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
    namespace: Annotated[
        list[str] | None, typer.Option(help="Watch only this namespace; may be repeated.")
    ] = None,
    image: Annotated[
        str, typer.Option(help="Image of services that name none in kubernetes.image.")
    ] = "",
    lease_namespace: Annotated[
        str, typer.Option(help="Namespace of the Lease that keeps a second operator waiting.")
    ] = "",
) -> None:
    """Turn TandemService resources into running clusters, until stopped."""
    try:
        from k8s.operator.leader import LeaseName
        from k8s.operator.run import Settings
        from k8s.operator.run import run as run_operator
        from orchestrator.cli.operator_sizer import PolicySizer
    except ImportError as error:
        raise UserError(
            f"the operator needs the k8s extra: {error}", "pip install 'tandem-serve[k8s]'"
        ) from error
    from kubernetes.config import ConfigException

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    settings = Settings(
        image=image,
        kubeconfig=kubeconfig,
        context=context,
        namespaces=tuple(dict.fromkeys(namespace or ())),
        lease=LeaseName(lease_namespace) if lease_namespace else None,
    )
    try:
        run_operator(settings, GrpcRouters(), PolicySizer)
    except ConfigException as error:
        raise UserError(
            f"no API server: {error}", "name a kubeconfig: tandem operator run --kubeconfig FILE"
        ) from error
