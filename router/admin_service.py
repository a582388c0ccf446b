"""What the router answers over gRPC to operators."""

from __future__ import annotations

from protos.tandem.v1 import admin_pb2, admin_pb2_grpc, common_pb2
from router.access import Access
from router.core.explain import Explanation
from router.dispatcher import Dispatcher
from router.errors import RequestError
from router.grpc_services import Context, telling, texts_of
from router.status import status_message

_WATCH_MS = 1000
_LEAST_WATCH_MS = 50


class AdminService(admin_pb2_grpc.AdminServicer):
    """The calls that this router can answer; gRPC itself answers UNIMPLEMENTED to the others."""

    def __init__(self, dispatcher: Dispatcher, access: Access) -> None:
        self._dispatcher = dispatcher
        self._access = access

    async def GetStatus(  # noqa: N802
        self,
        request: admin_pb2.GetStatusRequest,
        context: Context[admin_pb2.GetStatusRequest, admin_pb2.GetStatusResponse],
    ) -> admin_pb2.GetStatusResponse:
        async with telling(context):
            self._access.tenant(texts_of(context).get("authorization"), context.peer())
            return status_message(await self._dispatcher.status())

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
                await context.write(status_message(await self._dispatcher.status()))
                await self._dispatcher.workers_changed(period_ms / 1e3)

    async def Explain(  # noqa: N802
        self,
        request: admin_pb2.ExplainRequest,
        context: Context[admin_pb2.ExplainRequest, admin_pb2.ExplainResponse],
    ) -> admin_pb2.ExplainResponse:
        async with telling(context):
            self._access.tenant(texts_of(context).get("authorization"), context.peer())
            explanation = self._dispatcher.explain(request.request_id)
            if explanation is None:
                raise RequestError(
                    common_pb2.REASON_UNKNOWN_REQUEST,
                    f"request_id: {request.request_id!r} is not known here; it may have ended long "
                    "ago, or have run on another router",
                    "request_id",
                )
            return _explained(explanation)


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
    )
