"""The requests that the operator makes, through the official client, and nothing else of the API.

Each call is one HTTP request, counted. Objects stay plain JSON: the typed models of the client
know neither RayService nor our own resource.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import cast

from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from k8s.operator.kinds import EVENT, POD, TANDEM_SERVICE, Resource
from k8s.operator.objects import Manifest, number, sequence, text
from k8s.operator.scaling import FIELD_MANAGER as AUTOSCALER
from k8s.operator.service import FIELD_MANAGER, LABEL_COMPONENT, LABEL_SERVICE

_TIMEOUT_S = 15.0
_JSON = "application/json"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"


class ApiError(Exception):
    """The server refused or could not be asked; `status` 0 says that there was no answer."""

    def __init__(self, status: int, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class Api:
    """Blocking; `calls` counts requests since the start."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self.calls = 0

    def service(self, namespace: str, name: str) -> Manifest | None:
        """The TandemService as it is now; None when it is gone."""
        try:
            return self._call("GET", TANDEM_SERVICE.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def owned(self, resource: Resource, namespace: str, service: str) -> list[Manifest] | None:
        """Objects that carry the service's label; None when the cluster knows no such kind."""
        try:
            return self._list(resource, namespace, service)
        except ApiError as error:
            if error.status == 404 and resource.optional:
                return None
            raise

    def pods(self, namespace: str, service: str, component: str = "") -> list[Manifest]:
        """Of the service, or of one of its components."""
        more = f",{LABEL_COMPONENT}={component}" if component else ""
        return self._list(POD, namespace, service, more)

    def _list(
        self, resource: Resource, namespace: str, service: str, more: str = ""
    ) -> list[Manifest]:
        selector = {"labelSelector": f"{LABEL_SERVICE}={service}{more}"}
        answer = self._call("GET", resource.path(namespace), query=selector)
        # Items of a list name neither their kind nor its version.
        head = {"apiVersion": resource.api_version, "kind": resource.kind}
        return [{**head, **cast(Manifest, item)} for item in sequence(answer, "items")]

    def apply(self, resource: Resource, namespace: str, manifest: Manifest) -> Manifest:
        """Server-side apply; what others set in the same fields is taken over."""
        name = str(cast(Manifest, manifest["metadata"])["name"])
        return self._call(
            "PATCH", resource.path(namespace, name), manifest, _APPLY, {"force": "true"} | _MANAGER
        )

    def write_status(self, namespace: str, name: str, status: Mapping[str, object]) -> Manifest:
        body = {
            "apiVersion": TANDEM_SERVICE.api_version,
            "kind": TANDEM_SERVICE.kind,
            "metadata": {"name": name},
            "status": status,
        }
        path = f"{TANDEM_SERVICE.path(namespace, name)}/status"
        return self._call("PATCH", path, body, _APPLY, {"force": "true"} | _MANAGER)

    def write_scaling(self, namespace: str, name: str, scaling: Mapping[str, object]) -> None:
        """Replace what the autoscaler says in the status; nothing takes it back."""
        body = {
            "apiVersion": TANDEM_SERVICE.api_version,
            "kind": TANDEM_SERVICE.kind,
            "metadata": {"name": name},
            "status": {"scaling": scaling} if scaling else {},
        }
        path = f"{TANDEM_SERVICE.path(namespace, name)}/status"
        query = {"force": "true", "fieldManager": AUTOSCALER}
        self._call("PATCH", path, body, _APPLY, query)

    def set_finalizers(
        self, namespace: str, name: str, version: str, finalizers: Sequence[str]
    ) -> None:
        """Raises ApiError 409 when the resource is no longer of that version."""
        body = {"metadata": {"finalizers": list(finalizers), "resourceVersion": version}}
        self._call("PATCH", TANDEM_SERVICE.path(namespace, name), body, _MERGE, dict(_MANAGER))

    def delete(self, resource: Resource, namespace: str, name: str) -> None:
        """Removes an object; one that is gone is no error."""
        body = {"propagationPolicy": "Background"}
        try:
            self._call("DELETE", resource.path(namespace, name), body)
        except ApiError as error:
            if error.status != 404:
                raise

    def announce(self, namespace: str, event: Mapping[str, object]) -> None:
        """Create an Event; one of the same name was told before."""
        try:
            self._call("POST", EVENT.path(namespace), event)
        except ApiError as error:
            if error.status != 409:
                raise

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        content_type: str = _JSON,
        query: Mapping[str, str] | None = None,
    ) -> Manifest:
        self.calls += 1
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            request = self._client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            response = self._client.call_api(*request, _request_timeout=_TIMEOUT_S)
            answer: bytes = response.read()  # type: ignore[no-untyped-call]
        except (ApiException, HTTPError, OSError) as error:
            raise ApiError(0, f"{method} {path}: no answer: {error}") from error
        if not 200 <= response.status < 300:
            raise _refused(f"{method} {path}", response.status, answer, response.headers)
        return cast(Manifest, json.loads(answer))


_MANAGER = {"fieldManager": FIELD_MANAGER}


def _refused(what: str, status: int, body: bytes, headers: Mapping[str, str]) -> ApiError:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = {}
    message = text(answer, "message") or body[:200].decode(errors="replace")
    after = headers.get("Retry-After") or number(answer, "details", "retryAfterSeconds")
    return ApiError(status, f"{what}: {status} {message}", float(after or 0))
