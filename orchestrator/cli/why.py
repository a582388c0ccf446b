"""`tandem why`: what happened to a request, and what the router weighed when it decided."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.terminal import print_json

if TYPE_CHECKING:
    from protos.tandem.v1 import admin_pb2


def why(
    request_id: Annotated[
        str,
        typer.Argument(
            help="A request's id (without one, the last that ended), scale-N, or scaling: all of "
            "the autoscaler's decisions."
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    address: Annotated[
        str | None, typer.Option(help="gRPC address of the router, if several run.")
    ] = None,
    service: Annotated[
        str, typer.Option(help="A TandemService, NAMESPACE/NAME, whose decisions are asked for.")
    ] = "",
    kubeconfig: Annotated[
        Path | None, typer.Option(help="How to reach its API server; default: as kubectl does.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
) -> None:
    """Explain a request (candidates, waits, retries) or a decision of the autoscaler."""
    from orchestrator.autoscaler.journal import read_decisions
    from orchestrator.cli.locate import running_cluster
    from orchestrator.cli.why_scaling import is_decision, show_decisions
    from orchestrator.client import Client
    from orchestrator.errors import UserError

    if service:
        from orchestrator.cli.why_service import decisions_of

        name = request_id or "scaling"
        if not is_decision(name):
            raise UserError(
                f"{name!r} is no decision, and routers of a TandemService remember requests",
                "ask one of them: kubectl exec deploy/NAME-router -- tandem why ID --address ...",
            )
        show_decisions(name, decisions_of(service, kubeconfig, context), as_json)
        return
    if is_decision(request_id):
        decisions = read_decisions(Path(running_cluster(None).log_dir))
        show_decisions(request_id, decisions, as_json)
        return
    routers = [address] if address is not None else running_cluster(None).routers
    silent: UserError | None = None
    # Each router knows its own requests only.
    for endpoint in routers:
        with Client(endpoint) as client:
            try:
                story = client.explain(request_id)
            except UserError as error:
                silent = error
                continue
        if story is not None:
            _show(story, as_json)
            return
    if silent is not None:
        raise silent
    wanted = f"request {request_id!r} is not known" if request_id else "no request has ended"
    raise UserError(
        f"{wanted} to {'the router' if len(routers) == 1 else f'any of {len(routers)} routers'}",
        "routers remember their last 1,000 requests; `tandem generate --json` says the id of one",
    )


def _show(story: admin_pb2.ExplainResponse, as_json: bool) -> None:
    if as_json:
        print_json(_as_dict(story))
        return
    ran = " -> ".join(dict.fromkeys((story.prefill_worker, story.decode_worker)))
    print(
        f"{story.request_id}: {story.state}{f' on {ran}' if ran else ''}, {story.retries} retries"
    )
    for line in story.lines:
        print(line)


def _as_dict(story: admin_pb2.ExplainResponse) -> dict[str, object]:
    from protos.tandem.v1.common_pb2 import ReasonCode

    return {
        "request_id": story.request_id,
        "state": story.state,
        "prefill_worker": story.prefill_worker,
        "decode_worker": story.decode_worker,
        "retries": story.retries,
        "waited_ms": {name: round(ms, 3) for name, ms in sorted(story.waited_ms.items())},
        "steps": [
            {
                "at_ms": round(step.at_ms, 3),
                "state": step.state,
                "cause": step.cause,
                "reason": ReasonCode.Name(step.reason) if step.reason else None,
                "detail": step.detail,
            }
            for step in story.steps
        ],
        "placements": [
            {
                "at_ms": round(placement.at_ms, 3),
                "candidates": [
                    {
                        "prefill_worker": one.prefill_worker or one.decode_worker,
                        "decode_worker": one.decode_worker,
                        "chosen": one.chosen,
                        "refused": one.refused or None,
                        "uncached_tokens": one.uncached_tokens,
                        "expected_ms": round(one.expected_ms, 3),
                        "wait_ms": round(one.wait_ms, 3),
                        "read_ms": round(one.read_ms, 3),
                        "transfer_ms": round(one.transfer_ms, 3),
                        "step_ms": round(one.step_ms, 3),
                    }
                    for one in placement.candidates
                ],
            }
            for placement in story.placements
        ],
    }
