"""An API server in memory: versions, server-side apply, finalizers, collection, faults on demand.

Written for these tests because `kmock`, which mocks Kubernetes over HTTP, has neither apply patches
nor resource versions. Everything that is applied is checked against the real schema of its kind.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.unit.k8s.schemas import problems_of

Object = dict[str, object]
_PATH = re.compile(
    r"^/apis?/(?P<version>v1|[^/]+/[^/]+)/namespaces/(?P<namespace>[^/]+)/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?P<status>/status)?$"
)


class OperatorKilledError(BaseException):
    """kill -9 in the middle of a request: nothing of the operator runs after it."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: Object
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    method: str
    path: str

    @property
    def writes(self) -> bool:
        return self.method != "GET"


@dataclass(frozen=True, slots=True)
class Place:
    version: str
    plural: str
    namespace: str


class ApiServer:
    """`calls` is everything that was asked; `fault` may answer a call instead of the server."""

    def __init__(self, kinds: Mapping[str, tuple[str, str]]) -> None:
        """`kinds` maps a plural to its kind and version; others answer 404."""
        self.kinds = dict(kinds)
        self.calls: list[Call] = []
        self.fault: Callable[[Call], Answer | None] = lambda call: None
        self.on_change: Callable[[str, Object], None] = lambda event, item: None
        self._objects: dict[Place, dict[str, Object]] = {}
        self._applied: dict[tuple[Place, str, str], Object] = {}
        self._version = itertools.count(1000)
        self._uid = itertools.count(1)
        self.now = "2026-01-01T00:00:00Z"

    # What tests and simulated controllers use.

    def place(self, plural: str, namespace: str = "default") -> Place:
        return Place(self.kinds[plural][1], plural, namespace)

    def all(self, plural: str) -> list[Object]:
        """Live objects of a kind, by name."""
        found = self._objects.get(self.place(plural), {}) if plural in self.kinds else {}
        return [found[name] for name in sorted(found)]

    def get(self, plural: str, name: str) -> Object | None:
        return self._objects.get(self.place(plural), {}).get(name)

    def create(self, plural: str, item: Object) -> Object:
        kind, version = self.kinds[plural]
        place = self.place(plural)
        head = dict(_dict(item, "metadata"))
        fresh: Object = {**copy.deepcopy(item), "apiVersion": version, "kind": kind}
        fresh["metadata"] = {
            "namespace": place.namespace,
            "uid": f"uid-{next(self._uid)}",
            "generation": 1,
            "creationTimestamp": self.now,
            **head,
        }
        self._objects.setdefault(place, {})[str(head["name"])] = fresh
        self._touch("ADDED", fresh)
        return fresh

    def edit(self, plural: str, name: str, change: Callable[[Object], None]) -> None:
        """A write by somebody else; the generation grows when the spec changed."""
        item = self._objects[self.place(plural)][name]
        before = copy.deepcopy(item.get("spec"))
        change(item)
        if item.get("spec") != before:
            _bump(item)
        self._touch("MODIFIED", item)

    def remove(self, plural: str, name: str) -> None:
        """As `kubectl delete` does it."""
        self._delete(self.place(plural), name)

    # The HTTP surface.

    def request(
        self, method: str, path: str, query: Mapping[str, str], kind: str, body: Object
    ) -> Answer:
        call = Call(method, path)
        self.calls.append(call)
        if (answer := self.fault(call)) is not None:
            return answer
        match = _PATH.match(path)
        if match is None or match["plural"] not in self.kinds:
            return _refusal(404, "the server could not find the requested resource")
        place = self.place(match["plural"], match["namespace"])
        if place.version != match["version"]:
            return _refusal(404, "the server could not find the requested version")
        name = match["name"]
        if method == "GET" and name is None:
            return self._list(place, query)
        if method == "GET":
            found = self._objects.get(place, {}).get(name)
            return Answer(200, copy.deepcopy(found)) if found else _refusal(404, "not found")
        if method == "POST":
            return self._post(place, body)
        if method == "DELETE":
            return self._delete(place, name)
        if kind.startswith("application/apply-patch"):
            return self._apply(place, name, query["fieldManager"], body, bool(match["status"]))
        if kind == "application/merge-patch+json":
            return self._merge(place, name, body)
        return _refusal(415, f"patches of type {kind} are not taken")

    def _list(self, place: Place, query: Mapping[str, str]) -> Answer:
        asked = [part for part in query.get("labelSelector", "").split(",") if part]
        items = []
        for _, item in sorted(self._objects.get(place, {}).items()):
            labels = _dict(_dict(item, "metadata"), "labels")
            if all(_selects(part, labels) for part in asked):
                bare = {k: v for k, v in item.items() if k not in ("apiVersion", "kind")}
                items.append(copy.deepcopy(bare))
        version = {"resourceVersion": str(next(self._version))}
        return Answer(200, {"metadata": version, "items": items})

    def _post(self, place: Place, body: Object) -> Answer:
        name = str(_dict(body, "metadata")["name"])
        kind, version = self.kinds[place.plural]
        body = {"apiVersion": version, "kind": kind, **body}
        if problems := problems_of(body):
            return _refusal(422, "; ".join(problems))
        if name in self._objects.get(place, {}):
            return _refusal(409, f"{place.plural} {name!r} already exists")
        return Answer(201, copy.deepcopy(self.create(place.plural, body)))

    def _apply(self, place: Place, name: str, manager: str, body: Object, status: bool) -> Answer:
        found = self._objects.get(place, {}).get(name)
        if status:
            return self._apply_status(place, name, manager, found, body)
        if problems := problems_of(body):
            return _refusal(422, "; ".join(problems))
        key = (place, name, manager)
        if found is None:
            found = self.create(place.plural, body)
        else:
            before = copy.deepcopy(found)
            _take_away(found, self._applied.get(key, {}), body)
            _put(found, body)
            if found.get("spec") != before.get("spec"):
                _bump(found)
            if found != before:
                self._touch("MODIFIED", found)
        self._applied[key] = copy.deepcopy(body)
        return Answer(200, copy.deepcopy(found))

    def _apply_status(
        self, place: Place, name: str, manager: str, found: Object | None, body: Object
    ) -> Answer:
        """Each manager has the fields that it applied; a list belongs to one of them."""
        if found is None:
            return _refusal(404, "not found")
        key = (place, f"{name}/status", manager)
        before = copy.deepcopy(found)
        own: Object = {"status": _dict(body, "status")}
        _take_away(found, self._applied.get(key, {}), own)
        _put(found, own)
        self._applied[key] = copy.deepcopy(own)
        if found != before:
            self._touch("MODIFIED", found)
        return Answer(200, copy.deepcopy(found))

    def _merge(self, place: Place, name: str, body: Object) -> Answer:
        found = self._objects.get(place, {}).get(name)
        if found is None:
            return _refusal(404, "not found")
        head, wanted = _dict(found, "metadata"), dict(_dict(body, "metadata"))
        version = wanted.pop("resourceVersion", head["resourceVersion"])
        if version != head["resourceVersion"]:
            return _refusal(409, "the object has been modified")
        before = copy.deepcopy(found.get("spec"))
        _put(found, {**body, "metadata": wanted})
        if found.get("spec") != before:
            _bump(found)
        if head.get("deletionTimestamp") and not head.get("finalizers"):
            self._purge(place, name)
        else:
            self._touch("MODIFIED", found)
        return Answer(200, copy.deepcopy(found))

    def _delete(self, place: Place, name: str) -> Answer:
        found = self._objects.get(place, {}).get(name)
        if found is None:
            return _refusal(404, "not found")
        head = _dict(found, "metadata")
        if head.get("finalizers"):
            if not head.get("deletionTimestamp"):
                head["deletionTimestamp"] = self.now
                _bump(found)
                self._touch("MODIFIED", found)
        else:
            self._purge(place, name)
        return Answer(200, {})

    def _purge(self, place: Place, name: str) -> None:
        gone = self._objects[place].pop(name)
        self._touch("DELETED", gone)
        uid = _dict(gone, "metadata")["uid"]
        for other, items in list(self._objects.items()):
            for owned in [n for n, item in items.items() if uid in _owners(item)]:
                self._delete(other, owned)

    def _touch(self, event: str, item: Object) -> None:
        _dict(item, "metadata")["resourceVersion"] = str(next(self._version))
        self.on_change(event, copy.deepcopy(item))


class Client:
    """Stands in for the client's ApiClient, without a socket."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def param_serialize(
        self,
        method: str,
        path: str,
        query_params: list[tuple[str, str]],
        header_params: dict[str, str],
        body: object,
        auth_settings: list[str],
    ) -> tuple[str, str, list[tuple[str, str]], dict[str, str], object]:
        return method, path, query_params, header_params, body

    def call_api(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]],
        headers: dict[str, str],
        body: object,
        _request_timeout: float,
    ) -> Response:
        content = json.loads(json.dumps(body))
        assert content is None or isinstance(content, dict)
        answer = self._server.request(
            method, path, dict(query), headers.get("Content-Type", ""), content or {}
        )
        if answer.status == 0:
            raise ConnectionResetError("the connection was reset")
        return Response(answer)


class Response:
    def __init__(self, answer: Answer) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self._body = json.dumps(answer.body).encode()

    def read(self) -> bytes:
        return self._body


def refuse(status: int, retry_after_s: int | None = None) -> Answer:
    """What a server says that does not do what it was asked; 0 is no answer at all."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return Answer(status, {"kind": "Status", "message": f"injected {status}"}, headers)


def _refusal(status: int, message: str) -> Answer:
    body: Object = {"kind": "Status", "status": "Failure", "code": status, "message": message}
    return Answer(status, body)


def _selects(part: str, labels: Object) -> bool:
    label, _, value = part.partition("=")
    return labels.get(label) == value if value else label in labels


def _dict(item: Mapping[str, object], key: str) -> Object:
    found = item.get(key)
    return found if isinstance(found, dict) else {}


def _bump(item: Object) -> None:
    head = _dict(item, "metadata")
    generation = head.get("generation")
    head["generation"] = generation + 1 if isinstance(generation, int) else 1


def _owners(item: Object) -> set[object]:
    owners = _dict(item, "metadata").get("ownerReferences")
    return {owner["uid"] for owner in owners} if isinstance(owners, list) else set()


def _put(item: Object, wanted: Mapping[str, object]) -> None:
    """Maps are merged, everything else is replaced."""
    for key, value in wanted.items():
        below = item.get(key)
        if isinstance(value, Mapping) and isinstance(below, dict):
            _put(below, value)
        else:
            item[key] = copy.deepcopy(value)


def _take_away(item: Object, before: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Remove what the manager applied once and applies no more."""
    for key, value in before.items():
        if key not in now:
            item.pop(key, None)
        elif isinstance(value, Mapping):
            below, wanted = item.get(key), now[key]
            if isinstance(below, dict) and isinstance(wanted, Mapping):
                _take_away(below, value, wanted)
