"""Translates between the messages of a worker session and the core's events and instructions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from protos.tandem.v1 import worker_pb2
from router.core.events import (
    CreditsChanged,
    Ended,
    Event,
    PrefillDone,
    Reserved,
    StateArrived,
    TokensArrived,
)
from router.core.instructions import SendCancel, SendPrefill, SendReserve
from router.core.tokens import TokenLogprob
from router.requests import GenerationRequest


class ProtocolError(Exception):
    """A worker sent something that the protocol does not allow."""


def events_of(worker_id: str, message: worker_pb2.SessionEvents) -> Iterator[Event]:
    """The events in a message, in the order in which they may depend on each other.

    Raises ProtocolError when the columns of its token batch do not fit together.
    """
    for reserved in message.reserved:
        yield Reserved(worker_id, reserved.handle, reserved.ticket)
    for arrived in message.state_arrived:
        yield StateArrived(worker_id, arrived.handle)
    if message.HasField("tokens"):
        yield _tokens(worker_id, message.tokens)
    for done in message.prefill_done:
        handoff = done.handoff if done.HasField("handoff") else None
        yield PrefillDone(worker_id, done.handle, done.prefill_ms, handoff, done.cached_tokens)
    for ended in message.ended:
        speculation = ended.speculation if ended.HasField("speculation") else None
        yield Ended(worker_id, ended.handle, ended.reason, ended.detail, speculation)
    if message.HasField("credits"):
        credits = message.credits
        yield CreditsChanged(
            worker_id, credits.request_slots, credits.free_tokens, credits.total_tokens
        )


def _tokens(worker_id: str, batch: worker_pb2.TokenBatch) -> TokensArrived:
    # Lists, because slicing one costs a tenth of slicing a protobuf column.
    counts, token_ids, logprobs = list(batch.counts), list(batch.token_ids), _logprobs(batch)
    rows = len(counts)
    if (
        len(batch.handles) != rows
        or len(batch.first_indexes) != rows
        or sum(counts) != len(token_ids)
        or (logprobs and len(logprobs) != len(token_ids))
    ):
        raise ProtocolError("the columns of a token batch have different lengths")
    return TokensArrived(
        worker_id, list(batch.handles), list(batch.first_indexes), counts, token_ids, logprobs
    )


def _logprobs(batch: worker_pb2.TokenBatch) -> list[TokenLogprob]:
    """One for each token of a batch, or none; raises ProtocolError."""
    if not batch.top_counts:
        return [TokenLogprob(logprob) for logprob in batch.logprobs]
    top_counts = list(batch.top_counts)
    tops = list(zip(batch.top_token_ids, batch.top_logprobs, strict=False))
    if len(top_counts) != len(batch.logprobs) or not (
        len(tops) == len(batch.top_token_ids) == len(batch.top_logprobs) == sum(top_counts)
    ):
        raise ProtocolError("the alternatives of a token batch do not fit its tokens")
    ends = itertools.accumulate(top_counts)
    return [
        TokenLogprob(logprob, tuple(tops[end - count : end]))
        for logprob, count, end in zip(batch.logprobs, top_counts, ends, strict=True)
    ]


def command_for(
    instruction: SendReserve | SendPrefill, request: GenerationRequest, traceparent: str
) -> worker_pb2.SessionCommand:
    """The message that gives a worker its part of a request."""
    item = worker_pb2.WorkItem(
        handle=instruction.handle,
        request_id=request.request_id,
        sampling=request.sampling,
        prompt_tokens=len(request.token_ids),
        traceparent=traceparent,
        priority=request.class_rank,
    )
    if isinstance(instruction, SendReserve):
        return worker_pb2.SessionCommand(
            reserve=worker_pb2.Reserve(item=item, token_ids=request.token_ids)
        )
    return worker_pb2.SessionCommand(
        prefill=worker_pb2.Prefill(
            item=item, token_ids=request.token_ids, ticket=instruction.ticket
        )
    )


def cancel_command(instruction: SendCancel) -> worker_pb2.SessionCommand:
    """The message that has a worker let go of a handle."""
    return worker_pb2.SessionCommand(
        cancel=worker_pb2.Cancel(handle=instruction.handle, reason=instruction.reason)
    )
