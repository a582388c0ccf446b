"""What the router answers over gRPC to clients, and how it tells them of errors."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator
from typing import TypeAlias, TypeVar, cast

import grpc

from protos.tandem.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from router.access import Access
from router.core.reasons import WELL, reason_name
from router.errors import RequestError, failure, presentation, retry_after
from router.models import Models
from router.requests import ClientRequest, Delta, Finished
from workers.http2.calls import Call

_LOG = logging.getLogger(__name__)

# Trailing metadata of every call that fails: the reason code by name.
REASON_METADATA = "tandem-reason"
# Field 1 of GenerateResponse, of variable length.
_DELTA_TAG = b"\x0a"

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
                    lambda delta: call.send(_delta_bytes(delta, with_top)), call.room
                )
                await context.write(_finished(finished))
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


def _delta_bytes(item: Delta, with_top: bool) -> bytes:
    """A GenerateResponse with a delta, as its bytes: written around those of the delta, which
    spares a copy for each message of an answer."""
    message = inference_pb2.Delta(text=item.text, token_ids=item.token_ids)
    for told in item.logprobs:
        message.logprobs.append(told.logprob)
        if with_top:
            token_ids, logprobs = zip(*told.top, strict=True) if told.top else ((), ())
            message.top_logprobs.add(token_ids=token_ids, logprobs=logprobs)
    delta = message.SerializeToString()
    size = len(delta)
    if size < 0x80:  # a length of one byte
        return _DELTA_TAG + bytes((size,)) + delta
    return inference_pb2.GenerateResponse(delta=message).SerializeToString()


def _finished(item: Finished) -> inference_pb2.GenerateResponse:
    """The last message of an answer; raises RequestError for an end that is told by status."""
    # Cancelled is an end that somebody asked for, so it comes with its report.
    if item.reason not in WELL and item.reason != common_pb2.REASON_CANCELLED:
        raise failure(item.reason, item.detail, item.retry_after_s)
    finished = inference_pb2.Finished(
        request_id=item.request_id,
        reason=item.reason,
        prompt_tokens=item.prompt_tokens,
        completion_tokens=item.completion_tokens,
        report=item.report,
    )
    return inference_pb2.GenerateResponse(finished=finished)


def client_request(
    message: inference_pb2.GenerateRequest,
    traceparent: str,
    tenant: str = "",
    received_s: float | None = None,
) -> ClientRequest:
    """What a gRPC client asks for, in the router's terms."""
    sampling = message.sampling

    def given(field: str) -> bool:
        return sampling.HasField(field)  # type: ignore[arg-type]

    is_text = message.WhichOneof("prompt") == "text"
    return ClientRequest(
        prompt=message.text if is_text else message.token_ids.ids,
        prompt_field="text" if is_text else "token_ids",
        request_id=message.request_id,
        model=message.model,
        max_tokens=sampling.max_tokens if given("max_tokens") else None,
        temperature=sampling.temperature if given("temperature") else None,
        top_p=sampling.top_p if given("top_p") else None,
        top_k=sampling.top_k if given("top_k") else None,
        min_p=sampling.min_p if given("min_p") else None,
        repetition_penalty=sampling.repetition_penalty if given("repetition_penalty") else None,
        presence_penalty=sampling.presence_penalty if given("presence_penalty") else None,
        frequency_penalty=sampling.frequency_penalty if given("frequency_penalty") else None,
        seed=sampling.seed if given("seed") else None,
        stop=tuple(sampling.stop),
        stop_token_ids=tuple(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs,
        top_logprobs=sampling.top_logprobs,
        grammar=sampling.grammar if given("grammar") else None,
        deadline_ms=message.deadline_ms,
        priority_class=message.priority_class,
        traceparent=traceparent,
        tenant=tenant,
        received_s=received_s,
    )


def texts_of(context: Context[RequestT, ResponseT]) -> dict[str, str]:
    """A call's metadata but for what is binary; of a key that comes twice, the last."""
    metadata = context.invocation_metadata() or ()
    return {key: value for key, value in metadata if isinstance(value, str)}
