"""A blocking client of a running cluster, for commands and for the runtime that waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import NoReturn, Self, cast

import grpc

from orchestrator.errors import UserError
from protos.tandem.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc

_CALL_TIMEOUT_S = 5.0
_MAX_MESSAGE_BYTES = 64 * 2**20
_REASONS = {
    grpc.StatusCode.UNAVAILABLE: "see `tandem status`, or start a cluster with `tandem up`",
    grpc.StatusCode.DEADLINE_EXCEEDED: "see `tandem status`",
}


class Client:
    """Talks to one router; every method raises UserError with the router's own words."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.enable_http_proxy", 0),
            ],
        )
        self._admin = admin_pb2_grpc.AdminStub(self._channel)
        self._inference = inference_pb2_grpc.InferenceStub(self._channel)

    def status(self) -> admin_pb2.GetStatusResponse:
        """The model, the queue and every worker."""
        try:
            return self._admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=_CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            self._raise(error)

    def explain(self, request_id: str) -> admin_pb2.ExplainResponse | None:
        """The story of a request, or of the last that ended; None when the router knows none."""
        request = admin_pb2.ExplainRequest(request_id=request_id)
        try:
            return self._admin.Explain(request, timeout=_CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            if cast(grpc.Call, error).code() is grpc.StatusCode.NOT_FOUND:
                return None
            self._raise(error)

    def drain(self, worker_id: str, resume: bool = False) -> Iterator[admin_pb2.DrainProgress]:
        """Empty a worker; ends when it is safe to delete, or at once with `resume`."""
        call = self._admin.Drain(admin_pb2.DrainRequest(worker_id=worker_id, resume=resume))
        try:
            yield from call
        except grpc.RpcError as error:
            self._raise(error)
        finally:
            call.cancel()  # type: ignore[no-untyped-call]

    def flip(self, worker_id: str, role: str) -> admin_pb2.FlipResponse:
        """Have a worker take a role; waits until it has, or has said why not."""
        try:
            return self._admin.Flip(admin_pb2.FlipRequest(worker_id=worker_id, role=role))
        except grpc.RpcError as error:
            self._raise(error)

    def scale(self, role: str, workers: int) -> int:
        """Set how many workers a pool has; the number that it is meant to have then."""
        request = admin_pb2.ScaleRequest(role=role, workers=workers)
        try:
            return self._admin.Scale(request).workers
        except grpc.RpcError as error:
            self._raise(error)

    def generate(
        self, request: inference_pb2.GenerateRequest
    ) -> Iterator[inference_pb2.GenerateResponse]:
        """Stream the answer to one request."""
        call = self._inference.Generate(request)
        try:
            yield from call
        except grpc.RpcError as error:
            self._raise(error)
        finally:
            call.cancel()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _raise(self, error: grpc.RpcError) -> NoReturn:
        # What a call raises is both an RpcError and a Call, which the stubs cannot say.
        call = cast(grpc.Call, error)
        code = call.code()
        details = call.details() or code.name
        if code is grpc.StatusCode.UNAVAILABLE and "connect" in details.lower():
            details = f"no cluster answers at {self.address}"
        raise UserError(details, _REASONS.get(code, "")) from error
