"""`tandem drain`: empty a worker so that it can be taken away without loss."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.terminal import note, print_json


def drain(
    worker: Annotated[str, typer.Argument(help="Its id, as `tandem status` shows it.")],
    resume: Annotated[bool, typer.Option(help="Have it take work again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    address: Annotated[
        str | None, typer.Option(help="gRPC address of the router, if several run.")
    ] = None,
) -> None:
    """Have a worker take no more work and finish what it has; returns when it is safe to delete."""
    from orchestrator.cli.locate import running_cluster
    from orchestrator.client import Client

    safe = False
    with Client(address or running_cluster(None).for_commands) as client:
        for progress in client.drain(worker, resume):
            safe = progress.safe_to_delete
            if not resume and not safe:
                note(f"{worker}: {progress.running_requests} requests of this router are running")
    if as_json:
        print_json({"worker_id": worker, "draining": not resume, "safe_to_delete": safe})
    else:
        print(f"{worker} {'takes work again' if resume else 'is safe to delete'}")
