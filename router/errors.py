"""How each reason is told to a client: one table for gRPC and HTTP, so that they cannot differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import grpc

from protos.tandem.v1 import common_pb2
from router.core.reasons import Reason, reason_name


class RequestError(Exception):
    """A request was refused or failed; the message is meant for whoever sent it."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """`field` names what is wrong in the request, if something is; `retry_after_s` says when
        it may be worth sending it again."""
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Presentation:
    """A reason in the terms of gRPC, of HTTP and of the OpenAI error object."""

    grpc_status: grpc.StatusCode
    http_status: int
    openai_type: str
    openai_code: str | None = None


_BAD_REQUEST = Presentation(grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error")
_UNAVAILABLE = Presentation(grpc.StatusCode.UNAVAILABLE, 503, "server_error")
_FAILED = Presentation(grpc.StatusCode.INTERNAL, 500, "server_error")
_TOO_MUCH = Presentation(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "rate_limit_error")
_NOT_SO = Presentation(grpc.StatusCode.FAILED_PRECONDITION, 409, "invalid_request_error")
_CANCELLED = Presentation(grpc.StatusCode.CANCELLED, 499, "request_cancelled")

_TABLE: dict[Reason, Presentation] = {
    common_pb2.REASON_CANCELLED: _CANCELLED,
    common_pb2.REASON_CLIENT_GONE: _CANCELLED,
    common_pb2.REASON_DEADLINE_EXCEEDED: Presentation(
        grpc.StatusCode.DEADLINE_EXCEEDED, 504, "timeout"
    ),
    common_pb2.REASON_INVALID_ARGUMENT: _BAD_REQUEST,
    common_pb2.REASON_EMPTY_PROMPT: _BAD_REQUEST,
    common_pb2.REASON_PROMPT_TOO_LONG: Presentation(
        grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error", "context_length_exceeded"
    ),
    common_pb2.REASON_UNKNOWN_MODEL: Presentation(
        grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error", "model_not_found"
    ),
    common_pb2.REASON_DUPLICATE_REQUEST_ID: Presentation(
        grpc.StatusCode.ALREADY_EXISTS, 409, "invalid_request_error"
    ),
    common_pb2.REASON_UNAUTHENTICATED: Presentation(
        grpc.StatusCode.UNAUTHENTICATED, 401, "invalid_request_error", "invalid_api_key"
    ),
    common_pb2.REASON_UNKNOWN_REQUEST: Presentation(
        grpc.StatusCode.NOT_FOUND, 404, "invalid_request_error"
    ),
    common_pb2.REASON_QUEUE_FULL: _TOO_MUCH,
    common_pb2.REASON_OVERLOADED: _TOO_MUCH,
    common_pb2.REASON_RATE_LIMITED: Presentation(
        grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "rate_limit_error", "rate_limit_exceeded"
    ),
    common_pb2.REASON_NOT_DRAINED: _NOT_SO,
    common_pb2.REASON_LAYOUT_MISMATCH: _NOT_SO,
    common_pb2.REASON_POOLS_UNATTENDED: _NOT_SO,
    common_pb2.REASON_NO_WORKERS: _UNAVAILABLE,
    common_pb2.REASON_SHUTTING_DOWN: _UNAVAILABLE,
    common_pb2.REASON_DRAINING: _UNAVAILABLE,
    common_pb2.REASON_WORKER_LOST: _UNAVAILABLE,
    common_pb2.REASON_OUT_OF_CAPACITY: _UNAVAILABLE,
    common_pb2.REASON_TRANSFER_FAILED: _UNAVAILABLE,
    common_pb2.REASON_LEASE_EXPIRED: _UNAVAILABLE,
}


def refusal(
    field: str, message: str, reason: Reason = common_pb2.REASON_INVALID_ARGUMENT
) -> RequestError:
    """The error for one field of a request; the message says the value and the fix."""
    return RequestError(reason, f"{field}: {message}", field)


def presentation(reason: Reason) -> Presentation:
    """How to tell a reason; whatever is not a client's fault and has no name is a failure."""
    return _TABLE.get(reason, _FAILED)


def failure(reason: Reason, detail: str, retry_after_s: float | None = None) -> RequestError:
    """The error for a request that ended badly."""
    message = detail or f"the request ended with {reason_name(reason)}"
    return RequestError(reason, message, retry_after_s=retry_after_s)


def retry_after(error: RequestError) -> dict[str, str]:
    """The header of HTTP, and the metadata of gRPC, that says when to come again; in seconds."""
    if error.retry_after_s is None:
        return {}
    return {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
