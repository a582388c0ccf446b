"""The worker processes of a batch: prefill and decode, or one for both. Nobody else uses them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.runtime.child import Child
from orchestrator.runtime.worker_configs import worker_config
from orchestrator.spec import ClusterSpec
from workers.registry import Role, WorkerRecord

_READY_S = 900.0


class Engines:
    """Running workers and what they said of themselves."""

    def __init__(self, children: list[Child]) -> None:
        self._children = children
        self.records = tuple(
            WorkerRecord.from_json(child.wait_ready(_READY_S)) for child in children
        )

    def check_alive(self) -> None:
        """Raise UserError when one of them has ended."""
        for child in self._children:
            if child.exit_status() is not None:
                raise child.ended_error()


@contextlib.contextmanager
def running_engines(
    spec: ClusterSpec, colocated: bool, log_dir: Path, report: Callable[[str], None]
) -> Iterator[Engines]:
    """Start the workers that `spec` asks for and wait until they are ready; end them afterwards."""
    roles: tuple[Role, ...] = ("decode",) if colocated else ("prefill", "decode")
    with contextlib.ExitStack() as undo:
        children = []
        for role in roles:
            report(f"starting the {role} worker")
            config = worker_config(spec, role, store_url=None, cluster="batch")
            child = Child(
                f"the {role} worker",
                ["workers.server"],
                config.to_json(),
                log_dir / f"{config.worker_id}.log",
                config.interpreter,
            )
            undo.callback(child.stop)
            children.append(child)
        report("loading the model")
        yield Engines(children)
