"""`tandem flip`: a worker changes its role without loading its weights again."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.terminal import note, print_json


def flip(
    worker: Annotated[str, typer.Argument(help="Its id, as `tandem status` shows it.")],
    role: Annotated[str, typer.Argument(help="prefill or decode.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    address: Annotated[
        str | None, typer.Option(help="gRPC address of the router, if several run.")
    ] = None,
) -> None:
    """Drain a worker and have it take the other role."""
    from orchestrator.cli.locate import running_cluster
    from orchestrator.client import Client
    from orchestrator.errors import UserError
    from protos.tandem.v1.common_pb2 import ReasonCode

    with Client(address or running_cluster(None).for_commands) as client:
        if not as_json:
            note(f"draining {worker}")
        answer = client.flip(worker, role)
    if answer.reason:
        name = ReasonCode.Name(answer.reason)
        raise UserError(
            f"{worker} stays a {answer.role} worker: {answer.detail} ({name})",
            "only a worker whose layout serves both roles can flip",
        )
    if as_json:
        print_json({"worker_id": worker, "role": answer.role})
    else:
        print(f"{worker} is a {answer.role} worker")
