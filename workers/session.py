"""One router's session with a worker: its handles, and the events that wait to be sent to it.

Events of an engine step are merged into one message, and further steps into the same message
while the stream is busy: a slow reader gets fewer and larger messages, not a growing queue.
"""

from __future__ import annotations

import asyncio

from protos.tandem.v1 import common_pb2, worker_pb2
from workers.engine.commands import (
    Cancel,
    Command,
    Grammar,
    Prefill,
    Renew,
    Reserve,
    Sampling,
    WorkItem,
)
from workers.engine.events import Credits, Ended, PrefillDone, Reserved, StateArrived, TokenRow

SessionEvent = Reserved | PrefillDone | StateArrived | Ended


class ProtocolError(Exception):
    """The other side sent something that the protocol does not allow."""


def sampling_from_message(message: common_pb2.SamplingParams) -> Sampling:
    penalty = message.repetition_penalty if message.HasField("repetition_penalty") else 1.0
    return Sampling(
        max_tokens=message.max_tokens,
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        min_p=message.min_p,
        repetition_penalty=penalty,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        seed=message.seed,
        stop_token_ids=frozenset(message.stop_token_ids),
        logprobs=message.logprobs,
        top_logprobs=message.top_logprobs,
        grammar=_grammar_from_message(message.grammar),
    )


def _grammar_from_message(message: common_pb2.Grammar) -> Grammar | None:
    match message.WhichOneof("kind"):
        case "json_schema":
            return Grammar("json_schema", message.json_schema)
        case "regex":
            return Grammar("regex", message.regex)
        case "json_object" if message.json_object:
            return Grammar("json_object")
    return None


class RouterSession:
    """Translates between the handles of one router and the keys of the engine.

    Owned by the server's event loop. `next_message` is awaited by one writer at a time.
    """

    def __init__(self, first_key: int, key_step: int, worker_id: str) -> None:
        """Keys are `first_key`, `first_key + key_step`, ...: disjoint between sessions."""
        self._next_key = first_key
        self._key_step = key_step
        self._key_of: dict[int, int] = {}
        self._handle_of: dict[int, int] = {}
        self._pending = worker_pb2.SessionEvents(welcome=worker_pb2.Welcome(worker_id=worker_id))
        self._has_pending = asyncio.Event()
        self._has_pending.set()

    @property
    def open_keys(self) -> list[int]:
        """Keys of the requests that this session still has in the engine."""
        return list(self._handle_of)

    def command(self, message: worker_pb2.SessionCommand) -> Command | None:
        """The engine's command for a message; None when there is nothing to do.

        Raises ProtocolError for a handle used twice or an empty command.
        """
        match message.WhichOneof("command"):
            case "reserve":
                reserve = message.reserve
                return Reserve(self._open(reserve.item), tuple(reserve.token_ids))
            case "prefill":
                prefill = message.prefill
                ticket = prefill.ticket if prefill.HasField("ticket") else None
                return Prefill(self._open(prefill.item), tuple(prefill.token_ids), ticket)
            case "cancel":
                # An unknown handle has ended while the command was on its way.
                key = self._key_of.get(message.cancel.handle)
                return None if key is None else Cancel(key, message.cancel.reason)
            case "renew":
                key = self._key_of.get(message.renew.handle)
                return None if key is None else Renew(key)
            case other:
                raise ProtocolError(f"unexpected session command {other!r}")

    def _open(self, item: worker_pb2.WorkItem) -> WorkItem:
        if item.handle in self._key_of:
            raise ProtocolError(f"handle {item.handle} is in use")
        key = self._next_key
        self._next_key += self._key_step
        self._key_of[item.handle] = key
        self._handle_of[key] = item.handle
        return WorkItem(
            key=key,
            request_id=item.request_id,
            sampling=sampling_from_message(item.sampling),
            prompt_tokens=item.prompt_tokens,
            traceparent=item.traceparent,
            priority=item.priority,
        )

    def _close(self, key: int) -> int:
        handle = self._handle_of.pop(key)
        del self._key_of[handle]
        return handle

    def add_credits(self, credits: Credits) -> None:
        self._pending.credits.request_slots = credits.request_slots
        self._pending.credits.free_tokens = credits.free_tokens
        self._pending.credits.total_tokens = credits.total_tokens
        self._has_pending.set()

    def add_tokens(self, row: TokenRow) -> None:
        batch = self._pending.tokens
        before = len(batch.token_ids)
        batch.handles.append(self._handle_of[row.key])
        batch.first_indexes.append(row.first_index)
        batch.counts.append(len(row.chosen))
        batch.token_ids.extend(choice.token_id for choice in row.chosen)
        # Columns are all or nothing: tokens before the first that asked get zeros.
        if batch.logprobs or any(choice.logprob is not None for choice in row.chosen):
            batch.logprobs.extend([0.0] * (before - len(batch.logprobs)))
            batch.logprobs.extend(choice.logprob or 0.0 for choice in row.chosen)
        if batch.top_counts or any(choice.top for choice in row.chosen):
            batch.top_counts.extend([0] * (before - len(batch.top_counts)))
            for choice in row.chosen:
                batch.top_counts.append(len(choice.top))
                for token_id, logprob in choice.top:
                    batch.top_token_ids.append(token_id)
                    batch.top_logprobs.append(logprob)
        self._has_pending.set()

    def add(self, event: SessionEvent) -> None:
        """Append an event; the handle is free again after Ended and after a handed-off prefill."""
        match event:
            case Reserved(key, ticket):
                self._pending.reserved.add(handle=self._handle_of[key], ticket=ticket)
            case PrefillDone(key, prefill_ms, handoff, cached_tokens):
                handle = self._handle_of[key] if handoff is None else self._close(key)
                self._pending.prefill_done.add(
                    handle=handle,
                    prefill_ms=prefill_ms,
                    handoff=handoff,
                    cached_tokens=cached_tokens,
                )
            case StateArrived(key):
                self._pending.state_arrived.add(handle=self._handle_of[key])
            case Ended(key, reason, detail, speculation):
                self._pending.ended.add(
                    handle=self._close(key),
                    reason=reason,
                    detail=detail,
                    speculation=speculation,
                )
        self._has_pending.set()

    async def next_message(self) -> worker_pb2.SessionEvents:
        """Wait for events and take all that there are."""
        await self._has_pending.wait()
        self._has_pending.clear()
        message, self._pending = self._pending, worker_pb2.SessionEvents()
        return message
