"""The in-memory API server over HTTP: discovery and watches, for a real operator process.

It runs in a thread of its own; everything that touches the objects runs there.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import defaultdict
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

import yaml
from aiohttp import web

from k8s.operator.kinds import EVENT, OWNED, POD, TANDEM_SERVICE, Resource
from k8s.operator.objects import text
from tests.unit.k8s.api_server import Answer, ApiServer, Object

LEASE = Resource("Lease", "coordination.k8s.io/v1", "leases")
CRD = Resource("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions")
NAMESPACE = Resource("Namespace", "v1", "namespaces")
_RESOURCES = (*OWNED, POD, EVENT, TANDEM_SERVICE, LEASE, CRD, NAMESPACE)
_VERBS = ["get", "list", "watch", "create", "update", "patch", "delete"]
_T = TypeVar("_T")


class MemoryServer:
    """`kubeconfig` is how to reach it."""

    def __init__(self, folder: Path) -> None:
        self._api = ApiServer({r.plural: (r.kind, r.api_version) for r in _RESOURCES})
        self._api.on_change = self._changed
        self._history: list[tuple[int, str, str]] = []  # version, kind, event as a line
        self._watchers: dict[str, set[asyncio.Queue[str | None]]] = defaultdict(set)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="memory-server")
        self._thread.start()
        port = self._run(self._start())
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(kubeconfig(f"http://127.0.0.1:{port}")))

    @property
    def calls(self) -> int:
        """Requests other than watches and discovery."""
        return len(self._api.calls)

    def cut_watches(self) -> None:
        """End every watch, and say 410 Gone to whoever wants to go on from where it was."""

        async def cut() -> None:
            self._history.clear()
            for queues in self._watchers.values():
                for queue in queues:
                    queue.put_nowait(_GONE)
                    queue.put_nowait(None)

        self._run(cut())

    def close(self) -> None:
        async def stop() -> None:
            for queues in self._watchers.values():
                for queue in queues:
                    queue.put_nowait(None)
            await self._runner.cleanup()

        self._run(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[object, object, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _start(self) -> int:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        # Watches are open until they are cut; nobody waits for their end.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port: int = self._runner.addresses[0][1]
        return port

    def _changed(self, event: str, item: Object) -> None:
        kind = str(item["kind"])
        line = json.dumps({"type": event, "object": item})
        self._history.append((int(text(item, "metadata", "resourceVersion")), kind, line))
        for queue in self._watchers[kind]:
            queue.put_nowait(line)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if (found := _discovery(path)) is not None:
            return web.json_response(found)
        resource = _resource_of(path)
        if request.query.get("watch") == "true" and resource is not None:
            return await self._watch(request, resource)
        if request.method == "GET" and resource is not None and "/namespaces/" not in path:
            # The cluster has one namespace, so a list over all is the list of that one.
            path = resource.path("default")
        body = await request.json() if request.can_read_body else {}
        if request.method == "PUT" and resource is not None:
            answer = self._replace(path, resource, body)
        else:
            answer = self._api.request(
                request.method, path, dict(request.query), request.content_type, body
            )
        return web.json_response(answer.body, status=answer.status, headers=answer.headers)

    def _replace(self, path: str, resource: Resource, body: Object) -> Answer:
        """A whole object over the old one, if it is still the one that was read."""
        found = self._api.get(resource.plural, path.rpartition("/")[2])
        version = text(body, "metadata", "resourceVersion")
        if found is None or text(found, "metadata", "resourceVersion") != version:
            return Answer(409, {"kind": "Status", "code": 409, "message": "modified"})
        self._api.edit(resource.plural, text(body, "metadata", "name"), lambda it: it.update(body))
        return Answer(200, found)

    async def _watch(self, request: web.Request, resource: Resource) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        since = int(request.query.get("resourceVersion") or 0)
        for version, kind, line in self._history:
            if kind == resource.kind and version > since:
                queue.put_nowait(line)
        self._watchers[resource.kind].add(queue)
        try:
            while (event := await queue.get()) is not None:
                await response.write(event.encode() + b"\n")
        finally:
            self._watchers[resource.kind].discard(queue)
        return response


_GONE = json.dumps(
    {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}
)


def kubeconfig(server: str, user: Object | None = None, cluster: Object | None = None) -> Object:
    """A kubeconfig with one context."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": server, **(cluster or {})}}],
        "users": [{"name": "test", "user": user or {}}],
    }


def _resource_of(path: str) -> Resource | None:
    parts = path.split("/")
    found = (r for r in _RESOURCES if r is not NAMESPACE and r.plural in parts)
    return next(found, NAMESPACE if parts[-1] == "namespaces" else None)


def _discovery(path: str) -> Object | None:
    versions = sorted({resource.api_version for resource in _RESOURCES})
    if path == "/version":
        return {"major": "1", "minor": "34", "gitVersion": "v1.34.0-memory"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = []
        for version in versions:
            group, _, short = version.rpartition("/")
            if group:
                entry = {"groupVersion": version, "version": short}
                groups.append({"name": group, "versions": [entry], "preferredVersion": entry})
        return {"kind": "APIGroupList", "groups": groups}
    version = path.removeprefix("/apis/").removeprefix("/api/")
    if version in versions:
        return {
            "kind": "APIResourceList",
            "groupVersion": version,
            "resources": [_described(r) for r in _RESOURCES if r.api_version == version],
        }
    return None


def _described(resource: Resource) -> Object:
    return {
        "name": resource.plural,
        "singularName": resource.kind.lower(),
        "kind": resource.kind,
        "namespaced": resource not in (CRD, NAMESPACE),
        "verbs": _VERBS,
    }
