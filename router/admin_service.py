"""What the router answers over gRPC to operators."""

from __future__ import annotations

from protos.tandem.v1 import admin_pb2, admin_pb2_grpc, common_pb2
from router.access import Access
from router.core.explain import Explanation
from router.core.placement import Candidate
from router.core.request import Decision
from router.errors import refusal
from router.grpc_services import Context, telling, texts_of
from router.models import Models
from router.openai_http.formats import request_id_of
from router.orders import drain, flip, scale
from router.status import status_message
from workers.pool_desk import PoolDesk

_WATCH_MS = 1000
_LEAST_WATCH_MS = 50


class AdminService(admin_pb2_grpc.AdminServicer):
    """The calls of operators."""

    def __init__(self, models: Models, access: Access, desk: PoolDesk | None = None) -> None:
        """`desk` takes what is asked of the pools to whoever runs them."""
        self._models = models
        self._access = access
        self._desk = desk

    async def GetStatus(  # noqa: N802
        self,
        request: admin_pb2.GetStatusRequest,
        context: Context[admin_pb2.GetStatusRequest, admin_pb2.GetStatusResponse],
    ) -> admin_pb2.GetStatusResponse:
        async with telling(context):
            self._access.tenant(texts_of(context).get("authorization"), context.peer())
            return status_message(await self._models.statuses())

    # A coroutine and no generator, as Inference.Generate is one.
    async def Watch(  # type: ignore[override]  # noqa: N802
        self,
        request: admin_pb2.WatchRequest,
        context: Context[admin_pb2.WatchRequest, admin_pb2.GetStatusResponse],
    ) -> None:
        async with telling(context):
            self._access.tenant(texts_of(context).get("authorization"), context.peer())
            period_ms = max(_LEAST_WATCH_MS, request.period_ms or _WATCH_MS)
            while True:
                await context.write(status_message(await self._models.statuses()))
                await self._models.workers_changed(period_ms / 1e3)

    async def Explain(  # noqa: N802
        self,
        request: admin_pb2.ExplainRequest,
        context: Context[admin_pb2.ExplainRequest, admin_pb2.ExplainResponse],
    ) -> admin_pb2.ExplainResponse:
        async with telling(context):
            self._access.tenant(texts_of(context).get("authorization"), context.peer())
            name = request.request_id
            explanation = self._models.explain(name) or self._models.explain(request_id_of(name))
            if explanation is None:
                raise refusal(
                    "request_id",
                    f"{request.request_id!r} is not known here; it may have ended long ago, or "
                    "have run on another router"
                    if request.request_id
                    else "none has ended on this router",
                    common_pb2.REASON_UNKNOWN_REQUEST,
                )
            return _explained(explanation)

    # A coroutine and no generator, as Inference.Generate is one.
    async def Drain(  # type: ignore[override]  # noqa: N802
        self,
        request: admin_pb2.DrainRequest,
        context: Context[admin_pb2.DrainRequest, admin_pb2.DrainProgress],
    ) -> None:
        async with telling(context):
            self._access.tenant(texts_of(context).get("authorization"), context.peer())
            dispatcher = self._models.of_worker(request.worker_id)
            async for step in drain(dispatcher, request.worker_id, request.resume):
                await context.write(
                    admin_pb2.DrainProgress(
                        running_requests=step.running_requests, safe_to_delete=step.safe_to_delete
                    )
                )

    async def Flip(  # noqa: N802
        self,
        request: admin_pb2.FlipRequest,
        context: Context[admin_pb2.FlipRequest, admin_pb2.FlipResponse],
    ) -> admin_pb2.FlipResponse:
        async with telling(context):
            self._access.tenant(texts_of(context).get("authorization"), context.peer())
            dispatcher = self._models.of_worker(request.worker_id)
            result = await flip(dispatcher, request.worker_id, request.role)
            return admin_pb2.FlipResponse(
                role=result.role, reason=result.reason, detail=result.detail
            )

    async def Scale(  # noqa: N802
        self,
        request: admin_pb2.ScaleRequest,
        context: Context[admin_pb2.ScaleRequest, admin_pb2.ScaleResponse],
    ) -> admin_pb2.ScaleResponse:
        async with telling(context):
            self._access.tenant(texts_of(context).get("authorization"), context.peer())
            workers = await scale(self._desk, request.role, request.workers)
            return admin_pb2.ScaleResponse(workers=workers)


def _explained(explanation: Explanation) -> admin_pb2.ExplainResponse:
    began_s = explanation.transitions[0].at_s
    steps = [
        admin_pb2.Step(
            at_ms=(step.at_s - began_s) * 1e3,
            state=step.state,
            cause=step.cause,
            reason=step.reason,
            detail=step.detail,
        )
        for step in explanation.transitions
    ]
    return admin_pb2.ExplainResponse(
        request_id=explanation.request_id,
        state=explanation.state,
        prefill_worker=explanation.prefill_worker,
        decode_worker=explanation.decode_worker,
        steps=steps,
        lines=explanation.lines(),
        placements=[_placement(decision, began_s) for decision in explanation.decisions],
        retries=explanation.retries,
        waited_ms={resource: waited_s * 1e3 for resource, waited_s in explanation.waited_s},
    )


def _placement(decision: Decision, began_s: float) -> admin_pb2.Placement:
    return admin_pb2.Placement(
        at_ms=(decision.at_s - began_s) * 1e3,
        candidates=[_candidate(one, one is decision.chosen) for one in decision.candidates],
    )


def _candidate(candidate: Candidate, chosen: bool) -> admin_pb2.Candidate:
    return admin_pb2.Candidate(
        decode_worker=candidate.decode,
        prefill_worker=candidate.prefill,
        chosen=chosen,
        expected_ms=candidate.expected_s * 1e3,
        wait_ms=candidate.wait_s * 1e3,
        read_ms=candidate.read_s * 1e3,
        transfer_ms=candidate.transfer_s * 1e3,
        step_ms=candidate.step_s * 1e3,
        uncached_tokens=candidate.uncached_tokens,
        refused=candidate.refused or "",
    )
