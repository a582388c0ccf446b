"""What the router answers over gRPC to clients, and how it tells them of errors."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator
from typing import TypeAlias, TypeVar, cast

import grpc

from protos.tandem.v1 import inference_pb2, inference_pb2_grpc
from router.access import Access
from router.core.reasons import reason_name
from router.errors import RequestError, presentation, retry_after
from router.grpc_messages import client_request, delta_bytes, finished_message
from router.models import Models
from workers.http2.calls import Call

_LOG = logging.getLogger(__name__)

# Trailing metadata of every call that fails: the reason code by name.
REASON_METADATA = "tandem-reason"

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
Context: TypeAlias = grpc.aio.ServicerContext[RequestT, ResponseT]


@contextlib.asynccontextmanager
async def telling(context: Context[RequestT, ResponseT]) -> AsyncGenerator[None, None]:
    """End the call with the status of whatever is raised inside: a client never sees a stack."""
    try:
        yield
    except RequestError as error:
        await context.abort(
            presentation(error.reason).grpc_status,
            error.message,
            ((REASON_METADATA, reason_name(error.reason)), *retry_after(error).items()),
        )
    except grpc.aio.AbortError:
        raise
    except Exception:  # noqa: BLE001 - the last line of defence, and logged
        reference = secrets.token_hex(4)
        _LOG.exception("internal error %s", reference)
        await context.abort(
            grpc.StatusCode.INTERNAL,
            f"internal error; the router's log has it under {reference}",
            ((REASON_METADATA, "REASON_INTERNAL"),),
        )


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """What clients call."""

    def __init__(self, models: Models, access: Access) -> None:
        self._models = models
        self._access = access

    # Written as a coroutine, not as the generator that the stub declares: when the client leaves,
    # gRPC cancels a coroutine where it stands, but lets a generator lie until it is collected.
    async def Generate(  # type: ignore[override]  # noqa: N802 - the name on the wire
        self,
        request: inference_pb2.GenerateRequest,
        context: Context[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse],
    ) -> None:
        async with telling(context):
            metadata = texts_of(context)
            tenant = self._access.tenant(metadata.get("authorization"), context.peer())
            call = cast("Call", context)
            client = client_request(
                request, metadata.get("traceparent", ""), tenant, call.received_s
            )
            with_top = bool(client.top_logprobs)
            dispatcher = self._models.of(client.model)
            answer = dispatcher.begin(await dispatcher.prepare(client))
            try:
                finished = await answer.pour(
                    lambda delta: call.send(delta_bytes(delta, with_top)), call.room
                )
                await context.write(finished_message(finished))
            finally:
                answer.leave()

    async def Cancel(  # noqa: N802
        self,
        request: inference_pb2.CancelRequest,
        context: Context[inference_pb2.CancelRequest, inference_pb2.CancelResponse],
    ) -> inference_pb2.CancelResponse:
        async with telling(context):
            self._access.tenant(texts_of(context).get("authorization"), context.peer())
            return inference_pb2.CancelResponse(found=self._models.cancel(request.request_id))

    async def GetModel(  # noqa: N802
        self,
        request: inference_pb2.GetModelRequest,
        context: Context[inference_pb2.GetModelRequest, inference_pb2.GetModelResponse],
    ) -> inference_pb2.GetModelResponse:
        async with telling(context):
            self._access.tenant(texts_of(context).get("authorization"), context.peer())
            model = self._models.of(request.model).model
            return inference_pb2.GetModelResponse(
                name=model.name,
                max_model_tokens=model.max_model_tokens,
                vocab_size=model.vocab_size,
                eos_token_ids=sorted(model.defaults.eos_token_ids),
            )


def texts_of(context: Context[RequestT, ResponseT]) -> dict[str, str]:
    """A call's metadata but for what is binary; of a key that comes twice, the last."""
    metadata = context.invocation_metadata() or ()
    return {key: value for key, value in metadata if isinstance(value, str)}
