"""Translates between the messages of a worker session and the core's events and instructions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from protos.tandem.v1 import worker_pb2
from router.core.events import (
    CacheChanged,
    CreditsChanged,
    Drained,
    Ended,
    Event,
    Flipped,
    LoadChanged,
    PrefillDone,
    Reserved,
    Role,
    StateArrived,
    Stayed,
    TokensArrived,
)
from router.core.instructions import (
    SendCancel,
    SendDrain,
    SendFlip,
    SendMigrate,
    SendPrefill,
    SendRenew,
    SendReserve,
)
from router.core.tokens import TokenLogprob
from router.requests import GenerationRequest


class ProtocolError(Exception):
    """A worker sent something that the protocol does not allow."""


def events_of(worker_id: str, message: worker_pb2.SessionEvents) -> Iterator[Event]:
    """The events in a message, in the order in which they may depend on each other.

    Raises ProtocolError when the columns of its token batch do not fit together.
    """
    for reserved in message.reserved:
        yield Reserved(worker_id, reserved.handle, reserved.ticket, reserved.lease_s)
    for arrived in message.state_arrived:
        yield StateArrived(worker_id, arrived.handle, arrived.generated_tokens)
    if message.HasField("tokens"):
        yield _tokens(worker_id, message.tokens)
    for done in message.prefill_done:
        handoff = done.handoff if done.HasField("handoff") else None
        yield PrefillDone(worker_id, done.handle, done.prefill_ms, handoff, done.cached_tokens)
    for ended in message.ended:
        speculation = ended.speculation if ended.HasField("speculation") else None
        handoff = ended.handoff if ended.HasField("handoff") else None
        yield Ended(worker_id, ended.handle, ended.reason, ended.detail, speculation, handoff)
    for stayed in message.stayed:
        yield Stayed(worker_id, stayed.handle, stayed.reason, stayed.detail)
    if message.HasField("load"):
        yield _load(worker_id, message.load)
    if message.HasField("cache"):
        yield _cache(worker_id, message.cache)
    if message.HasField("drained"):
        yield Drained(worker_id)
    if message.HasField("flipped"):
        flipped = message.flipped
        role: Role = "prefill" if flipped.role == "prefill" else "decode"
        yield Flipped(worker_id, role, flipped.reason, flipped.detail)
    if message.HasField("credits"):
        credits = message.credits
        yield CreditsChanged(
            worker_id,
            credits.request_slots,
            credits.free_tokens,
            credits.total_tokens,
            credits.total_slots,
            credits.all_free_tokens,
            credits.work_seen,
            credits.draining,
        )


def _load(worker_id: str, load: worker_pb2.Load) -> LoadChanged:
    return LoadChanged(
        worker_id=worker_id,
        running_requests=load.running_requests,
        waiting_prefill_tokens=load.waiting_prefill_tokens,
        prefill_tokens_per_s=load.prefill_tokens_per_s,
        step_ms=load.step_ms,
        step_requests=load.step_requests,
        step_tokens=load.step_tokens,
        link_bytes_in_flight=load.link_bytes_in_flight,
        link_bytes_per_s=load.link_bytes_per_s,
        state_bytes_per_token=load.state_bytes_per_token,
        state_bytes_per_request=load.state_bytes_per_request,
    )


def _cache(worker_id: str, cache: worker_pb2.CacheChanges) -> CacheChanged:
    return CacheChanged(
        worker_id=worker_id,
        block_tokens=cache.block_tokens,
        reset=cache.reset,
        stored_blocks=list(cache.stored_blocks),
        removed_blocks=list(cache.removed_blocks),
        stored_states=[(state.name, state.chain, state.tokens) for state in cache.stored_states],
        removed_states=list(cache.removed_states),
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
    """The message that gives a worker its part of a request, from where it stands."""
    generated = instruction.generated
    token_ids = (*request.token_ids, *generated) if generated else request.token_ids
    item = worker_pb2.WorkItem(
        handle=instruction.handle,
        request_id=request.request_id,
        sampling=request.sampling,
        prompt_tokens=len(request.token_ids),
        traceparent=traceparent,
        priority=request.class_rank,
        generated_tokens=len(generated),
    )
    if isinstance(instruction, SendReserve):
        growth = instruction.growth_tokens
        reserve = worker_pb2.Reserve(item=item, token_ids=token_ids, growth_tokens=growth)
        return worker_pb2.SessionCommand(reserve=reserve)
    return worker_pb2.SessionCommand(
        prefill=worker_pb2.Prefill(item=item, token_ids=token_ids, ticket=instruction.ticket)
    )


def order_command(
    instruction: SendCancel | SendRenew | SendMigrate | SendDrain | SendFlip, layout: str = ""
) -> worker_pb2.SessionCommand:
    """The message for what needs no request; `layout` is that of the pool to flip to."""
    match instruction:
        case SendCancel(_, handle, reason):
            cancel = worker_pb2.Cancel(handle=handle, reason=reason)
            return worker_pb2.SessionCommand(cancel=cancel)
        case SendRenew(_, handle):
            return worker_pb2.SessionCommand(renew=worker_pb2.Renew(handle=handle))
        case SendMigrate(_, handle, ticket):
            migrate = worker_pb2.Migrate(handle=handle, ticket=ticket)
            return worker_pb2.SessionCommand(migrate=migrate)
        case SendDrain(_, resume):
            return worker_pb2.SessionCommand(drain=worker_pb2.Drain(resume=resume))
        case SendFlip(_, role):
            return worker_pb2.SessionCommand(flip=worker_pb2.Flip(role=role, layout=layout))
