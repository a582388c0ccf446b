"""`tandem status`: the workers of a running cluster, their roles, load and leases."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.terminal import print_json

_UNBOUNDED = 200

if TYPE_CHECKING:
    from rich.table import Table

    from protos.tandem.v1 import admin_pb2


def status(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    address: Annotated[
        str | None, typer.Option(help="gRPC address of the router, if several run.")
    ] = None,
) -> None:
    """Show the workers of a running cluster."""
    from orchestrator.cli.locate import running_cluster
    from orchestrator.client import Client

    # An address may also be that of a cluster on another machine.
    endpoint = address or running_cluster(None).for_commands
    with Client(endpoint) as client:
        answer = client.status()
    if as_json:
        print_json(_as_dict(endpoint, answer))
        return
    from rich.console import Console

    print(
        f"{answer.model} at {endpoint}: {answer.running_requests} running, "
        f"{answer.queued_requests} queued"
    )
    print(_matching_line(answer.matching))
    # A file or a pipe has no width to keep to.
    console = Console() if sys.stdout.isatty() else Console(width=_UNBOUNDED)
    console.print(_table(answer))


def _as_dict(endpoint: str, answer: admin_pb2.GetStatusResponse) -> dict[str, object]:
    return {
        "grpc": endpoint,
        "model": answer.model,
        "queued_requests": answer.queued_requests,
        "matching": _matching_as_dict(answer.matching),
        "running_requests": answer.running_requests,
        "workers": [
            {
                "worker_id": worker.worker_id,
                "role": worker.role,
                "engine": worker.engine,
                "model": worker.model,
                "address": worker.address,
                "connected": worker.connected,
                "running_requests": worker.running_requests,
                "request_slots": worker.request_slots,
                "free_tokens": worker.free_tokens,
                "total_tokens": worker.total_tokens,
                "lease_remaining_s": round(worker.lease_remaining_s, 3),
                "uptime_s": round(worker.uptime_s, 3),
                "pid": worker.pid,
                "layout": worker.layout,
                "duty": worker.duty,
                "breaker": worker.breaker,
            }
            for worker in answer.workers
        ],
    }


def _matching_as_dict(matching: admin_pb2.Matching) -> dict[str, object]:
    known = matching.HasField("matched_ratio")
    return {
        "seconds": round(matching.seconds, 3),
        "matched_ratio": round(matching.matched_ratio, 4) if known else None,
        "prefill_idle_share": round(matching.prefill_idle_share, 4),
        "decode_idle_share": round(matching.decode_idle_share, 4),
        "waited_s": {name: round(s, 3) for name, s in sorted(matching.waited_s.items())},
    }


def _matching_line(matching: admin_pb2.Matching) -> str:
    """One line: how the rates of the pools match, of the last minute."""
    ratio = "-"
    if matching.HasField("matched_ratio"):
        ratio = f"{matching.matched_ratio:.2f}"
    waits = ", ".join(f"{name} {s:.1f} s" for name, s in sorted(matching.waited_s.items()) if s)
    return (
        f"matched {ratio}, idle: prefill {matching.prefill_idle_share:.0%}, "
        f"decode {matching.decode_idle_share:.0%}, over {matching.seconds:.0f} s"
        + (f"; the queue waited for {waits}" if waits else "")
    )


def _state(worker: admin_pb2.WorkerStatus) -> str:
    if not worker.connected:
        return "connecting"
    if worker.breaker != "closed":
        return f"left alone ({worker.breaker})"
    return "ready" if worker.duty == "serving" else worker.duty.replace("_", " ")


def _table(answer: admin_pb2.GetStatusResponse) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    several = len({worker.model for worker in answer.workers}) > 1
    for heading in ("WORKER", *(["MODEL"] if several else []), "ROLE", "ADDRESS", "STATE"):
        table.add_column(heading, no_wrap=True)
    for heading in ("RUN", "SLOTS", "TOKENS", "LEASE", "UP"):
        table.add_column(heading, justify="right", no_wrap=True)
    for worker in sorted(answer.workers, key=lambda w: (w.role != "prefill", w.worker_id)):
        table.add_row(
            worker.worker_id,
            *([worker.model] if several else []),
            worker.role,
            worker.address,
            _state(worker),
            str(worker.running_requests),
            str(worker.request_slots),
            str(worker.free_tokens),
            f"{worker.lease_remaining_s:.1f} s",
            _duration(worker.uptime_s),
        )
    return table


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
