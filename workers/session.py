"""One router's session with a worker: its handles, and the events that wait to be sent to it.

Events of an engine step are merged into one message, and further steps into the same message
while the stream is busy: a slow reader gets fewer and larger messages, not a growing queue.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from protos.tandem.v1 import common_pb2, worker_pb2
from workers.cache_mirror import CacheFeed, CacheMirror
from workers.engine.commands import (
    Cancel,
    Command,
    Drain,
    Grammar,
    Migrate,
    Prefill,
    Renew,
    Reserve,
    Sampling,
    WorkItem,
)
from workers.engine.events import Ended, PrefillDone, Reserved, StateArrived, Stayed, TokenRow
from workers.engine.load import Load
from workers.shares import Grant
from workers.state.prefix_cache import CacheChanges
from workers.token_columns import TokenColumns

SessionEvent = Reserved | PrefillDone | StateArrived | Ended | Stayed


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

    def __init__(
        self, first_key: int, key_step: int, worker_id: str, cache: CacheMirror | None = None
    ) -> None:
        """Keys are `first_key`, `first_key + key_step`, ...: disjoint between sessions."""
        self._next_key = first_key
        self._key_step = key_step
        self._key_of: dict[int, int] = {}
        self._handle_of: dict[int, int] = {}
        self._pending = worker_pb2.SessionEvents(welcome=worker_pb2.Welcome(worker_id=worker_id))
        self._tokens = TokenColumns()
        self._cache = CacheFeed(CacheMirror() if cache is None else cache)
        self._work_seen = 0
        self._granted: tuple[Grant, int] | None = None
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
                return Reserve(
                    self._open(reserve.item), tuple(reserve.token_ids), reserve.growth_tokens
                )
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
            case "migrate":
                key = self._key_of.get(message.migrate.handle)
                ticket = message.migrate.ticket if message.migrate.HasField("ticket") else None
                return None if key is None else Migrate(key, ticket)
            case "drain":
                return Drain(message.drain.resume)
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
            generated_tokens=item.generated_tokens,
        )

    def _close(self, key: int) -> int:
        handle = self._handle_of.pop(key)
        del self._key_of[handle]
        return handle

    def count_work(self) -> None:
        """The engine has seen one more Reserve or Prefill of this session."""
        self._work_seen += 1

    def add_credits(self, grant: Grant) -> None:
        """Say what the router may send, unless it knows."""
        if self._granted == (grant, self._work_seen):
            return
        self._granted = (grant, self._work_seen)
        self._pending.credits.CopyFrom(
            worker_pb2.Credits(
                request_slots=grant.request_slots,
                free_tokens=grant.free_tokens,
                total_tokens=grant.total_tokens,
                total_slots=grant.total_slots,
                all_free_tokens=grant.all_free_tokens,
                work_seen=self._work_seen,
                draining=grant.draining,
            )
        )
        self._has_pending.set()

    def add_load(self, load: Load) -> None:
        self._pending.load.CopyFrom(worker_pb2.Load(**asdict(load)))
        self._has_pending.set()

    def add_cache(self, changes: CacheChanges) -> None:
        """Pass on changes of the prefix cache that its mirror has taken."""
        self._cache.add(changes)
        self._has_pending.set()

    def add_drained(self) -> None:
        self._pending.drained.SetInParent()
        self._has_pending.set()

    def add_flipped(self, flipped: worker_pb2.Flipped) -> None:
        self._pending.flipped.CopyFrom(flipped)
        self._has_pending.set()

    def add_tokens(self, row: TokenRow) -> None:
        """Append the new tokens of one request."""
        self._tokens.add(self._handle_of[row.key], row)
        self._has_pending.set()

    def add(self, event: SessionEvent) -> None:
        """Append an event; the handle is free again after Ended and after a handed-off prefill."""
        match event:
            case Reserved(key, ticket, lease_s):
                handle = self._handle_of[key]
                self._pending.reserved.add(handle=handle, ticket=ticket, lease_s=lease_s)
            case PrefillDone(key, prefill_ms, handoff, cached_tokens):
                handle = self._handle_of[key] if handoff is None else self._close(key)
                self._pending.prefill_done.add(
                    handle=handle,
                    prefill_ms=prefill_ms,
                    handoff=handoff,
                    cached_tokens=cached_tokens,
                )
            case StateArrived(key, generated_tokens):
                handle = self._handle_of[key]
                self._pending.state_arrived.add(handle=handle, generated_tokens=generated_tokens)
            case Stayed(key, reason, detail):
                handle = self._handle_of[key]
                self._pending.stayed.add(handle=handle, reason=reason, detail=detail)
            case Ended(key, reason, detail, speculation, handoff):
                self._pending.ended.add(
                    handle=self._close(key),
                    reason=reason,
                    detail=detail,
                    speculation=speculation,
                    handoff=handoff,
                )
        self._has_pending.set()

    async def next_message(self) -> worker_pb2.SessionEvents:
        """Wait for events and take all that there are."""
        await self._has_pending.wait()
        self._has_pending.clear()
        message, self._pending = self._pending, worker_pb2.SessionEvents()
        if self._tokens:
            message.tokens.CopyFrom(self._tokens.batch())
            self._tokens = TokenColumns()
        cache = self._cache.take()
        if cache is not None:
            message.cache.CopyFrom(cache)
        return message
