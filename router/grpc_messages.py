"""Between what clients say over gRPC and the router's own terms."""

from __future__ import annotations

from typing import Final

from protos.tandem.v1 import common_pb2, inference_pb2
from router.core.reasons import WELL
from router.errors import failure
from router.requests import ClientRequest, Delta, Finished

# Field 1 of GenerateResponse, of variable length.
_DELTA_TAG: Final = b"\x0a"


def delta_bytes(item: Delta, with_top: bool) -> bytes:
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


def finished_message(item: Finished) -> inference_pb2.GenerateResponse:
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
