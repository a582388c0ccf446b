"""`tandem scale`: change how many workers the pools of a running cluster have."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.terminal import note, print_json
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from protos.tandem.v1.admin_pb2 import WorkerStatus

_LOOK_S = 0.5


def scale(
    sizes: Annotated[
        list[str], typer.Argument(help="prefill=N, decode=N, or both.", metavar="ROLE=N...")
    ],
    wait: Annotated[
        bool, typer.Option(help="Return when the workers are there, and those that go have gone.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    address: Annotated[
        str | None, typer.Option(help="gRPC address of the router, if several run.")
    ] = None,
) -> None:
    """Give pools so many workers, within workers.min and workers.max of the spec.

    Workers that go finish what they have first.
    """
    from orchestrator.cli.locate import running_cluster
    from orchestrator.client import Client

    wanted = wanted_sizes(sizes)
    with Client(address or running_cluster(None).for_commands) as client:
        for role, workers in wanted.items():
            client.scale(role, workers)
        said = ""
        while wait:
            found = pool_sizes(client.status().workers)
            if all(found.get(role, 0) == workers for role, workers in wanted.items()):
                break
            now = ", ".join(f"{found.get(role, 0)} of {n} {role}" for role, n in wanted.items())
            if now != said:
                note(f"workers: {now}")
                said = now
            time.sleep(_LOOK_S)
    if as_json:
        print_json({"workers": wanted, "waited": wait})
    else:
        print(", ".join(f"{role}: {workers}" for role, workers in wanted.items()))


def wanted_sizes(arguments: Iterable[str]) -> dict[str, int]:
    """The sizes in `role=number` arguments. Raises UsageError that names the one that is wrong."""
    wanted: dict[str, int] = {}
    for argument in arguments:
        role, equals, number = argument.partition("=")
        if role not in ("prefill", "decode") or not equals or not number.isdecimal():
            raise UsageError(f"{argument!r} is no pool size", "write prefill=2 or decode=3")
        if role in wanted:
            raise UsageError(f"{role} is named twice", f"write {role}={number} once")
        wanted[role] = int(number)
    return wanted


def pool_sizes(workers: Iterable[WorkerStatus]) -> Mapping[str, int]:
    """How many connected workers each pool has; one that has flipped counts where it was started,
    as it does for Ray Serve. Its pool is in its name."""
    sizes: dict[str, int] = {}
    for worker in workers:
        if worker.connected:
            pool = worker.worker_id.partition("-")[0]
            sizes[pool] = sizes.get(pool, 0) + 1
    return sizes
