"""The routers as child processes.

One alone is not started again: its end is reported and ends the cluster. Of several that share the
ports, one that ends takes only its own connections along, and another takes its place.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.client import Client
from orchestrator.errors import UserError
from orchestrator.runtime.child import Child, Interrupted, never
from orchestrator.runtime.ports import free_port, split_address
from orchestrator.runtime.worker_configs import trace_config
from orchestrator.spec import ClusterSpec
from router.config import ApiKey, ModelFolder, PriorityClass, RouterConfig, Tenant, TlsFiles

_LOG = logging.getLogger(__name__)
_READY_S = 30.0
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where clients reach a cluster, as host:port; `local` is for commands on this machine, which
    come in without keys and certificates."""

    grpc: str
    http: str
    local: str


def router_config(spec: ClusterSpec, store_url: str, cluster: str) -> RouterConfig:
    """What the spec means for one router."""
    tls, keys = spec.security.tls, spec.security.api_keys
    return RouterConfig(
        cluster=cluster,
        store_url=store_url,
        model_path=spec.model.path,
        model_name=spec.model.name,
        more_models=tuple(ModelFolder(one.model.name, one.model.path) for one in spec.more_models),
        grpc=spec.router.grpc,
        http=spec.router.http,
        classes=tuple(
            PriorityClass(name, target.ttft_ms, target.itl_ms, target.weight)
            for name, target in spec.classes.items()
        ),
        shares_ports=spec.router.processes > 1,
        tls=None if tls is None else TlsFiles(tls.cert, tls.key, tls.client_ca),
        api_keys=None
        if keys is None
        else tuple(ApiKey(tenant, key.removeprefix("sha256:")) for tenant, key in keys.items()),
        tenants=tuple(
            Tenant(name, tenant.weight, tenant.tokens_per_s, tenant.burst_tokens)
            for name, tenant in spec.tenants.items()
        ),
        trace=trace_config(spec),
    )


class RouterProcess:
    """One running router."""

    def __init__(self, name: str, config: RouterConfig, log_path: Path) -> None:
        assert config.local_socket is not None
        self.config = config
        self.local = f"unix:{config.local_socket}"
        self.child = Child(name, ["router"], config.to_json(), log_path)

    def wait_ready(self, interrupted: Callable[[], bool] = never) -> Endpoints:
        """Where it listens, once it does."""
        ready = json.loads(self.child.wait_ready(_READY_S, interrupted))
        return Endpoints(grpc=ready["grpc"], http=ready["http"], local=self.local)

    def stop(self) -> None:
        self.child.stop()


class Routers:
    """All routers of one cluster."""

    def __init__(self, config: RouterConfig, processes: int, log_dir: Path, run_dir: Path) -> None:
        """Start so many; `run_dir` gets their local sockets."""
        if processes > 1:
            # A port that the kernel chooses would be another for each of them.
            config = replace(config, grpc=_fixed(config.grpc), http=_fixed(config.http))
        self._log_dir = log_dir
        self._routers: list[RouterProcess] = []
        for number in range(processes):
            own = replace(config, local_socket=str(run_dir / f"router-{number}.sock"))
            self._routers.append(self._started(number, own))

    def _started(self, number: int, config: RouterConfig) -> RouterProcess:
        several = config.shares_ports
        name = f"router {number}" if several else "the router"
        log = f"router-{number}.log" if several else "router.log"
        return RouterProcess(name, config, self._log_dir / log)

    def wait_ready(self, interrupted: Callable[[], bool] = never) -> Endpoints:
        """Where they listen, once all of them do."""
        first, *_ = [router.wait_ready(interrupted) for router in self._routers]
        return first

    def wait_connected(
        self,
        workers: int,
        timeout_s: float,
        report: Callable[[str], None],
        tend: Callable[[], None],
        interrupted: Callable[[], bool] = never,
    ) -> None:
        """Wait until each has sessions with so many workers; calls `tend` while it waits.

        Raises UserError when that takes longer than `timeout_s`, and Interrupted.
        """
        deadline = time.monotonic() + timeout_s
        for router in self._routers:
            with Client(router.local) as client:
                while (connected := _connected(client)) < workers:
                    if interrupted():
                        raise Interrupted
                    tend()
                    if time.monotonic() > deadline:
                        raise UserError(
                            f"{router.child.name} reached {connected} of {workers} workers in "
                            f"{timeout_s:.0f} s",
                            f"see the logs in {self._log_dir}",
                        )
                    report(f"connecting {router.child.name}: {connected} of {workers} workers")
                    time.sleep(_POLL_S)

    @property
    def pids(self) -> list[int]:
        """Of the routers, in order."""
        return [router.child.pid for router in self._routers]

    def tend(self) -> None:
        """Start one of several again if it has ended; raise UserError if the only one has."""
        for number, router in enumerate(self._routers):
            if router.child.exit_status() is None:
                continue
            if len(self._routers) == 1:
                raise router.child.ended_error()
            _LOG.warning("%s ended; starting another", router.child.name)
            router.stop()
            self._routers[number] = self._started(number, router.config)

    def stop(self) -> None:
        """Stop all of them."""
        for router in self._routers:
            router.stop()


def _fixed(address: str) -> str:
    host, port = split_address(address)
    return address if port else f"{address.rpartition(':')[0]}:{free_port(host)}"


def _connected(client: Client) -> int:
    return sum(1 for worker in client.status().workers if worker.connected)
