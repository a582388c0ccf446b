"""A cluster in virtual time: the server, KubeRay, the Deployment controller, kubelets, clients.

The simulated parts do what the real ones promise, no more: pods take time to start, routers are
ready when their revision's decode pool runs, a pod that is asked to go finishes what it has in its
preStop hook, and clients send requests to whatever the Service selects. `lost` lists requests that
were cut off.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import yaml

from k8s.operator.api import Api
from k8s.operator.autoscaling import Autoscaling, SizerFactory
from k8s.operator.kinds import EVENT, OWNED, POD, TANDEM_SERVICE
from k8s.operator.objects import condition, mapping, number, text
from k8s.operator.observed import InFlight
from k8s.operator.queue import ServiceKey, WorkQueue
from k8s.operator.reconciler import Reconciler
from k8s.operator.scaling import DecisionRow, Pools, askable
from k8s.operator.service import LABEL_COMPONENT, LABEL_REVISION, LABEL_SERVICE, Role
from tests.unit.k8s.api_server import ApiServer, Client, Object, OperatorKilledError
from tests.unit.k8s.virtual_time import VirtualTimeLoop

IMAGE = "registry.example/tandem:1"
START = datetime(2026, 1, 1, tzinfo=UTC)
KINDS = {
    kind.plural: (kind.kind, kind.api_version) for kind in (*OWNED, POD, EVENT, TANDEM_SERVICE)
}
_POOL_START_S = 20
_ROUTER_START_S = 3
_REQUEST_S = 8
_WORKER_STOP_S = 2


@dataclass
class Pod:
    """A router's requests, as the times when they will be finished."""

    finishes: list[float] = field(default_factory=list)


class Routers:
    """Knows what the simulated routers work on, and have done."""

    def __init__(self, world: World) -> None:
        self._world = world

    def in_flight(self, routers: object) -> InFlight:
        return InFlight(sum(len(pod.finishes) for pod in self._world.requests.values()))

    def met(self, routers: Sequence[str]) -> dict[str, int]:
        return {name: self._world.met[name] for name in routers}


class Scripted:
    """A sizer that wants what the test says."""

    def __init__(self, world: World, pools: Pools) -> None:
        self._world = world
        self.pools = pools
        self.number = pools.last_number

    async def step(self, now_s: float) -> None:
        wish, have = self._world.wish, self.pools.counts()
        if wish is None or wish == have or not self.pools.routers():
            return
        self._world.wish = None
        self.number += 1
        active = self.pools.service.spec.autoscaling.mode == "active"
        if active:
            self.pools.want(wish)
        summary = f"scale-{self.number}: {have} -> {wish}"
        at = self._world.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        outcome = "asked for" if active else "advised"
        row = DecisionRow(self.number, at, "RULE", summary, outcome, have, wish, (summary,))
        self.pools.note(row)

    def close(self) -> None:
        self._world.sizers_closed += 1


class World:
    """`run` lets time pass. Everything is deterministic."""

    def __init__(self, without: tuple[str, ...] = ()) -> None:
        kinds = {plural: kind for plural, kind in KINDS.items() if plural not in without}
        self.server = ApiServer(kinds)
        self.loop = VirtualTimeLoop()
        self.requests: dict[str, Pod] = {}
        self.lost: list[str] = []
        self.served = 0
        self.traffic = False
        self.watches = True
        self.broken_images: set[str] = set()
        self.pool_born: dict[str, float] = {}
        self._born: dict[str, float] = {}
        self._going: dict[str, float] = {}
        self.met: dict[str, int] = defaultdict(int)  # by router: requests in time
        self.wish: dict[Role, int] | None = None  # what the scripted sizer is to decide next
        self.sizers: SizerFactory = lambda pools: Scripted(self, pools)
        self.sizers_closed = 0
        self._autoscaling: Autoscaling | None = None
        self._queue: WorkQueue | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._count = 0

    # The operator.

    def start_operator(self) -> None:
        api = Api(Client(self.server))  # type: ignore[arg-type]  # without a socket
        reconciler = Reconciler(api, Routers(self), self.now, IMAGE)

        async def write(key: ServiceKey, scaling: Mapping[str, object]) -> None:
            try:
                api.write_scaling(key.namespace, key.name, scaling)
            except OperatorKilledError:
                self.kill_operator()
                raise asyncio.CancelledError from None

        def addresses(key: ServiceKey) -> list[str]:
            return askable(api.pods(key.namespace, key.name, "router"))

        async def look(key: ServiceKey) -> float | None:
            try:
                return reconciler.reconcile(key.namespace, key.name)
            except OperatorKilledError:
                self.kill_operator()
                raise asyncio.CancelledError from None

        self._queue = WorkQueue(look)
        self._autoscaling = Autoscaling(self.sizers, addresses, write)
        self.server.on_change = self._changed
        # A watch begins with what is there.
        for item in self.server.all(TANDEM_SERVICE.plural):
            self.loop.call_soon(self._changed, "ADDED", item)
        self._tasks = [self.loop.create_task(self._queue.run())]

    def reconcile_once(self) -> None:
        """One look, as if nobody told the operator of its own writes."""
        api = Api(Client(self.server))  # type: ignore[arg-type]  # without a socket
        Reconciler(api, Routers(self), self.now, IMAGE).reconcile("default", "demo")

    def kill_operator(self) -> None:
        """As kill -9: what it was about to write is not written."""
        for task in [*self._tasks, *(self._queue._running.values() if self._queue else ())]:
            task.cancel()
        for followed in self._autoscaling._followed.values() if self._autoscaling else ():
            followed.task.cancel()
        self._autoscaling = None
        self._tasks = []
        self._queue = None

    @property
    def operator_runs(self) -> bool:
        return self._queue is not None

    def _changed(self, event: str, item: Object) -> None:
        if not self.watches or self._queue is None:
            return
        kind = str(item["kind"])
        name = text(item, "metadata", "labels", LABEL_SERVICE)
        if kind == TANDEM_SERVICE.kind:
            name = text(item, "metadata", "name")
        elif kind not in ("Deployment", "RayService"):
            return
        if kind == TANDEM_SERVICE.kind:
            self.loop.call_soon(self._follow, event, name, item)
        if name:
            self.loop.call_soon(self._queue.add, ServiceKey("default", name))

    def _follow(self, event: str, name: str, item: Object) -> None:
        if self._autoscaling is None:
            return
        if event == "DELETED":
            self._autoscaling.forget(ServiceKey("default", name))
        else:
            self._autoscaling.follow(ServiceKey("default", name), item)

    # Time.

    def now(self) -> datetime:
        return START + timedelta(seconds=self.loop.now_s)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass, second by second, until something holds; whether it does."""

        async def live() -> bool:
            end = self.loop.time() + seconds
            alive = self.operator_runs
            while not until():
                if self.loop.time() >= end or self.operator_runs != alive:
                    return until()
                self.server.now = self.now().strftime("%Y-%m-%dT%H:%M:%SZ")
                self._step()
                await asyncio.sleep(1)
            return True

        return self.loop.run_until_complete(live())

    def close(self) -> None:
        self.kill_operator()
        pending = asyncio.all_tasks(self.loop)
        for task in pending:
            task.cancel()
        if pending:
            self.loop.run_until_complete(asyncio.wait(pending))
        self.loop.close()

    # Everybody else.

    def _step(self) -> None:
        self._kuberay()
        self._deployments()
        self._kubelets()
        if self.traffic:
            self._clients()

    def _kuberay(self) -> None:
        pools = {text(item, "metadata", "name"): item for item in self.server.all("rayservices")}
        for name in [name for name in self.pool_born if name not in pools]:
            del self.pool_born[name]
            for pod in self._pods_named(f"{name}-"):
                self._ask_to_go(text(pod, "metadata", "name"))
        for name, item in pools.items():
            born = self.pool_born.setdefault(name, self.loop.now_s)
            template = mapping(item, "spec", "rayClusterConfig", "headGroupSpec", "template")
            image = str(template["spec"]["containers"][0]["image"])  # type: ignore[index]
            up = self.loop.now_s - born >= _POOL_START_S and image not in self.broken_images
            config = yaml.safe_load(text(item, "spec", "serveConfigV2"))
            statuses: dict[str, object] = {}
            for application in config["applications"]:
                role, size = application["name"], application["deployments"][0]["num_replicas"]
                self._size_pool(item, name, role, size if up else 0)
                statuses[role] = {
                    "status": "RUNNING" if up else "DEPLOYING",
                    "serveDeploymentStatuses": {
                        role: {"status": "HEALTHY" if up else "UPDATING", "message": ""}
                    },
                }
            status = {"activeServiceStatus": {"applicationStatuses": statuses}}
            if item.get("status") != status:
                self.server.edit("rayservices", name, _with(status=status))

    def _size_pool(self, owner: Object, pool: str, role: str, size: int) -> None:
        have = [pod for pod in self._pods_named(f"{pool}-{role}-") if self._stays(pod)]
        for pod in have[size:]:
            self._ask_to_go(text(pod, "metadata", "name"))
        labels = dict(mapping(owner, "metadata", "labels")) | {LABEL_COMPONENT: role}
        for _ in range(size - len(have)):
            self._make_pod(f"{pool}-{role}", labels, ready=True)

    def _deployments(self) -> None:
        for item in self.server.all("deployments"):
            if not text(item, "metadata", "name").endswith("-router"):
                continue
            template = mapping(item, "spec", "template")
            revision = text(template, "metadata", "labels", LABEL_REVISION)
            wanted = number(item, "spec", "replicas") or 1
            name = text(item, "metadata", "name")
            pods = [pod for pod in self._pods_named(f"{name}-") if self._stays(pod)]
            annotations = mapping(template, "metadata", "annotations")
            current = [
                pod
                for pod in pods
                if mapping(pod, "metadata", "annotations") == annotations
                and text(pod, "metadata", "labels", LABEL_REVISION) == revision
            ]
            for _ in range(wanted - len(current)):
                labels = dict(mapping(template, "metadata", "labels"))
                self._make_pod(name, labels, annotations=dict(annotations))
            ready = [pod for pod in current if condition(pod, "Ready") == "True"]
            surplus = current[wanted:]
            if len(ready) >= wanted:
                surplus += [pod for pod in pods if pod not in current]
            for pod in surplus:
                self._ask_to_go(text(pod, "metadata", "name"))
            status = {
                "observedGeneration": number(item, "metadata", "generation"),
                "replicas": len(pods),
                "updatedReplicas": min(wanted, len(current)),
                "readyReplicas": sum(condition(pod, "Ready") == "True" for pod in pods),
            }
            if item.get("status") != status:
                self.server.edit("deployments", name, _with(status=status))
        alive = {text(item, "metadata", "name") for item in self.server.all("deployments")}
        for pod in self.server.all("pods"):
            router = text(pod, "metadata", "labels", LABEL_COMPONENT) == "router"
            if router and text(pod, "metadata", "name").rpartition("-")[0] not in alive:
                self._ask_to_go(text(pod, "metadata", "name"))

    def _kubelets(self) -> None:
        for pod in self.server.all("pods"):
            name = text(pod, "metadata", "name")
            labels = mapping(pod, "metadata", "labels")
            router = labels.get(LABEL_COMPONENT) == "router"
            work = self.requests.get(name)
            if work is not None:
                done = [when for when in work.finishes if when <= self.loop.now_s]
                self.served += len(done)
                self.met[f"{text(pod, 'status', 'podIP')}:50051"] += len(done)
                work.finishes = [when for when in work.finishes if when > self.loop.now_s]
                if work.finishes and not self._pool_runs(str(labels[LABEL_REVISION])):
                    self.lost += [f"{name}: its pool has gone"] * len(work.finishes)
                    work.finishes = []
            if name in self._going:
                # preStop: a router waits until it is idle, a worker until Serve has moved on.
                if router and work is not None and work.finishes:
                    continue
                if self.loop.now_s - self._going[name] >= _WORKER_STOP_S:
                    self.requests.pop(name, None)
                    del self._going[name]
                    self.server.remove("pods", name)
            elif router:
                started = self.loop.now_s - self._born[name] >= _ROUTER_START_S
                ready = started and self._pool_runs(str(labels[LABEL_REVISION]))
                if ready != (condition(pod, "Ready") == "True"):
                    address = text(pod, "status", "podIP")
                    self.server.edit("pods", name, _with(**_pod_status(ready, address)))

    def _clients(self) -> None:
        service = self.server.get("services", "demo")
        if service is None:
            return
        selector = mapping(service, "spec", "selector").items()
        for pod in self.server.all("pods"):
            name = text(pod, "metadata", "name")
            chosen = selector <= mapping(pod, "metadata", "labels").items()
            if chosen and condition(pod, "Ready") == "True" and name not in self._going:
                self.requests.setdefault(name, Pod()).finishes.append(self.loop.now_s + _REQUEST_S)

    def _pool_runs(self, revision: str) -> bool:
        for item in self.server.all("rayservices"):
            if text(item, "metadata", "labels", LABEL_REVISION) == revision:
                statuses = mapping(item, "status", "activeServiceStatus", "applicationStatuses")
                return text(statuses, "decode", "status") == "RUNNING"
        return False

    def _pods_named(self, prefix: str) -> list[Object]:
        return [
            pod
            for pod in self.server.all("pods")
            if text(pod, "metadata", "name").startswith(prefix)
        ]

    def _stays(self, pod: Object) -> bool:
        return text(pod, "metadata", "name") not in self._going

    def _ask_to_go(self, name: str) -> None:
        self._going.setdefault(name, self.loop.now_s)

    def _make_pod(
        self,
        prefix: str,
        labels: dict[str, object],
        annotations: dict[str, object] | None = None,
        ready: bool = False,
    ) -> None:
        self._count += 1
        name = f"{prefix}-{self._count}"
        self._born[name] = self.loop.now_s
        head = {"name": name, "labels": labels, "annotations": annotations or {}}
        port = {"name": "grpc", "containerPort": 50051}
        spec = {"containers": [{"name": "only", "ports": [port]}]}
        status = _pod_status(ready, f"10.0.{self._count // 256}.{self._count % 256}")
        self.server.create("pods", {"metadata": head, "spec": spec, **status})

    # What tests look at.

    def make_service(self, spec: Object | None = None, name: str = "demo") -> None:
        self.server.create(TANDEM_SERVICE.plural, {"metadata": {"name": name}, "spec": spec or {}})

    @property
    def service(self) -> Object | None:
        return self.server.get(TANDEM_SERVICE.plural, "demo")

    def condition(self, kind: str) -> str:
        """True/Reason, or empty."""
        for entry in mapping(self.service, "status").get("conditions", []):  # type: ignore[attr-defined]
            if entry["type"] == kind:
                return f"{entry['status']}/{entry['reason']}"
        return ""

    @property
    def phase(self) -> str:
        return text(self.service, "status", "phase")

    @property
    def settled(self) -> bool:
        """Everything is as the latest spec says, and the old has gone."""
        seen = number(self.service, "status", "observedGeneration")
        return (
            self.phase == "Ready"
            and seen == number(self.service, "metadata", "generation")
            and len(self.server.all("rayservices")) == 1
        )

    @property
    def writes(self) -> int:
        return sum(call.writes for call in self.server.calls)

    def change(self, **sections: object) -> None:
        """Merge sections into the spec of `demo`, as a user would."""

        def merge(item: Object) -> None:
            spec = item["spec"]
            assert isinstance(spec, dict)
            for name, section in sections.items():
                if isinstance(section, dict):
                    spec[name] = {**spec.get(name, {}), **section}
                else:
                    spec[name] = section

        self.server.edit(TANDEM_SERVICE.plural, "demo", merge)


def _pod_status(ready: bool, address: str) -> Object:
    entry = {"type": "Ready", "status": "True" if ready else "False"}
    return {"status": {"phase": "Running", "podIP": address, "conditions": [entry]}}


def _with(**fields: object) -> Callable[[Object], None]:
    return lambda item: item.update(fields)
