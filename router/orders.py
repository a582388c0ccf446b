"""What operators order a router to do with workers, from the order to its end.

The core knows what is to be done and when it is done; here somebody waits for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from redis.exceptions import RedisError

from protos.tandem.v1 import common_pb2
from router.core.events import Role
from router.core.reasons import Reason
from router.core.worker_view import WorkerView
from router.core.workforce import duty
from router.dispatcher import Dispatcher
from router.errors import RequestError, refusal
from workers.pool_desk import PoolDesk

# Requests that end tell nobody who waits for a worker: look at their number so often.
_LOOK_S = 0.2
_SCALE_TIMEOUT_S = 30.0  # Ray Serve may be busy starting others


@dataclass(frozen=True, slots=True)
class DrainStep:
    """How far a drain is; `safe_to_delete` when nothing is left of any router."""

    running_requests: int
    safe_to_delete: bool


@dataclass(frozen=True, slots=True)
class FlipResult:
    """The role that a worker has, and why it is not the one that was asked for."""

    role: Role
    reason: Reason
    detail: str


async def drain(
    dispatcher: Dispatcher, worker_id: str, resume: bool = False
) -> AsyncIterator[DrainStep]:
    """Have a worker take no more work; yields whenever something has changed, until it is empty.

    With `resume` it takes work again, which is said once. Raises RequestError for a worker that is
    not connected, is lost on the way, or is told by somebody else to go on.
    """
    _known(dispatcher, worker_id)
    dispatcher.drain(worker_id, resume)
    said: DrainStep | None = None
    while True:
        view = _known(dispatcher, worker_id)
        step = DrainStep(len(view.holds), duty(view) == "safe_to_delete")
        if not resume and not view.asked_to_drain:
            raise RequestError(
                common_pb2.REASON_NOT_DRAINED,
                f"worker {worker_id} was told to go on before it was empty",
            )
        if step != said:
            said = step
            yield step
        if resume or step.safe_to_delete:
            return
        await dispatcher.workers_changed(_LOOK_S)


async def flip(dispatcher: Dispatcher, worker_id: str, role: str) -> FlipResult:
    """Have a worker drain and take a role, and wait until it has, or has said why not.

    Raises RequestError for a worker that is not connected or is lost on the way, and for a role
    that there is not.
    """
    wanted = _role(role)
    if _known(dispatcher, worker_id).role != wanted:
        dispatcher.flip(worker_id, wanted)
    while (view := _known(dispatcher, worker_id)).flip_to is not None:
        await dispatcher.workers_changed(_LOOK_S)
    if view.role == wanted:
        return FlipResult(wanted, common_pb2.REASON_UNSPECIFIED, "")
    return FlipResult(view.role, view.flip_reason, view.flip_problem)


async def scale(desk: PoolDesk | None, role: str, workers: int) -> int:
    """Have whoever runs the pools change the size of one; returns the size it is meant to have.

    Raises RequestError for a role that there is not, for a size that the spec does not allow, and
    where nobody takes such orders: not without a store, and not where the operator of Kubernetes
    keeps the sizes.
    """
    wanted = _role(role)
    try:
        answer = None if desk is None else await desk.ask(wanted, workers, _SCALE_TIMEOUT_S)
    except (RedisError, OSError) as error:
        raise RequestError(
            common_pb2.REASON_POOLS_UNATTENDED, f"the store does not answer: {error}"
        ) from error
    if answer is None:
        raise RequestError(
            common_pb2.REASON_POOLS_UNATTENDED,
            "nobody here starts and stops workers on request: change prefill.workers or "
            "decode.workers in the spec, and whoever runs the pools does it",
        )
    if answer.problem:
        raise refusal("workers", answer.problem)
    return answer.workers


def _known(dispatcher: Dispatcher, worker_id: str) -> WorkerView:
    view = dispatcher.worker(worker_id)
    if view is None:
        raise refusal(
            "worker_id",
            f"{worker_id!r} is not connected to this router; `tandem status` lists those that are",
            common_pb2.REASON_UNKNOWN_REQUEST,
        )
    return view


def _role(role: str) -> Role:
    roles: tuple[Literal["prefill"], Literal["decode"]] = ("prefill", "decode")
    for known in roles:
        if role == known:
            return known
    raise refusal("role", f"{role!r} is none; use prefill or decode")
