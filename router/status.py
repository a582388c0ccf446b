"""The state of a router at one moment, for people and for tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protos.tandem.v1 import admin_pb2
from router.core.matching import MatchReport
from router.core.worker_view import WorkerView
from router.core.workforce import duty
from workers.registry import WorkerRecord


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker of the directory; `view` is None while no session with it stands."""

    record: WorkerRecord
    view: WorkerView | None
    lease_remaining_s: float
    uptime_s: float


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """What a router knows of its requests and workers; `matching` is of the last minute."""

    model: str
    queued_requests: int
    running_requests: int
    matching: MatchReport
    workers: tuple[WorkerState, ...]
    traffic: admin_pb2.Traffic


def status_message(statuses: Sequence[RouterStatus]) -> admin_pb2.GetStatusResponse:
    """The answer of Admin.GetStatus for one status of each model: requests and workers of all of
    them, but how well the pools match, and what traffic they have, of the first."""
    first = statuses[0]
    return admin_pb2.GetStatusResponse(
        model=first.model,
        queued_requests=sum(status.queued_requests for status in statuses),
        running_requests=sum(status.running_requests for status in statuses),
        workers=[_worker_message(worker) for status in statuses for worker in status.workers],
        matching=_matching_message(first.matching),
        traffic=first.traffic,
    )


def _matching_message(match: MatchReport) -> admin_pb2.Matching:
    return admin_pb2.Matching(
        seconds=match.seconds,
        matched_ratio=match.matched_ratio,
        prefill_idle_share=match.prefill_idle_share,
        decode_idle_share=match.decode_idle_share,
        waited_s=match.waited_s,
    )


def _worker_message(worker: WorkerState) -> admin_pb2.WorkerStatus:
    record, view = worker.record, worker.view
    return admin_pb2.WorkerStatus(
        worker_id=record.worker_id,
        role=record.role if view is None else view.role,
        engine=record.engine,
        model=record.model_name,
        address=record.address,
        connected=view is not None,
        running_requests=0 if view is None else len(view.holds),
        request_slots=0 if view is None else view.free_slots,
        free_tokens=0 if view is None else view.free_tokens,
        total_tokens=0 if view is None else view.total_tokens,
        lease_remaining_s=worker.lease_remaining_s,
        uptime_s=worker.uptime_s,
        layout=record.layout,
        pid=record.pid,
        duty="" if view is None else duty(view),
        breaker="" if view is None else view.breaker.state,
        prefill_tokens_per_s=0.0 if view is None else view.load.prefill_tokens_per_s,
        step_ms=0.0 if view is None else view.load.step_ms,
        step_requests=0 if view is None else view.load.step_requests,
    )
