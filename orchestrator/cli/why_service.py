"""Decisions of a TandemService's autoscaler, from the service's own status."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import UserError


def decisions_of(
    service: str, kubeconfig: Path | None, context: str | None
) -> list[dict[str, object]]:
    """Those that the status still has, the oldest first. `service` is NAMESPACE/NAME, or a name
    in the namespace default. Raises UserError."""
    try:
        from kubernetes.client import ApiClient
        from kubernetes.config import ConfigException

        from k8s.operator.api import Api, ApiError
        from k8s.operator.run import Settings, connection
        from k8s.operator.scaling import decisions
    except ImportError as error:
        raise UserError(
            f"--service needs the k8s extra: {error}", "pip install 'tandem-serve[k8s]'"
        ) from error
    namespace, _, name = service.rpartition("/")
    try:
        server = connection(Settings(kubeconfig=kubeconfig, context=context))
        resource = Api(ApiClient(server)).service(namespace or "default", name)
    except ConfigException as error:
        raise UserError(f"no API server: {error}", "name one with --kubeconfig FILE") from error
    except ApiError as error:
        raise UserError(f"--service {service}: {error}", "see `kubectl get tds -A`") from error
    if resource is None:
        raise UserError(
            f"--service {service}: there is no such TandemService", "see `kubectl get tds -A`"
        )
    found = []
    for row in decisions(resource):
        if isinstance(row, dict):
            fields = dict(row)
            found.append({"decision_id": fields.pop("id", ""), **fields})
    return found
