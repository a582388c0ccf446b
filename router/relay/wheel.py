"""Tokens of one worker that wait for those that follow: merged by request, let out in turns.

Requests are spread over the slots of a wheel, and one or several slots are let out with each tick.
So a token waits for one turn at most, and the work of sending comes in small pieces instead of all
at once, during which a new request would have to wait.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from router.core.events import TokensArrived
from router.core.tokens import TokenLogprob

SLOTS: Final = 16
TICK_S: Final = 0.001


def slots_due(elapsed_s: float, hold_s: float) -> int:
    """How many slots to let out when so much time has passed since some were, so that a turn of the
    wheel takes `hold_s` however late the ticks come."""
    if elapsed_s >= hold_s - TICK_S / 2:
        return SLOTS
    return math.ceil(SLOTS * elapsed_s / hold_s)


@dataclass(slots=True)
class _Held:
    """Consecutive tokens of one request; the first of them came at `since_s`."""

    first_index: int
    since_s: float
    token_ids: list[int]
    logprobs: list[TokenLogprob]


@dataclass(slots=True)
class _Columns:
    """Rows on their way out, in the columns of `TokensArrived`."""

    handles: list[int] = field(default_factory=list)
    first_indexes: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(
        self, handle: int, first_index: int, ids: list[int], logprobs: list[TokenLogprob]
    ) -> None:
        self.handles.append(handle)
        self.first_indexes.append(first_index)
        self.counts.append(len(ids))
        if logprobs or self.logprobs:
            # Columns are all or nothing: rows without log-probabilities get zeros.
            self.logprobs.extend([TokenLogprob(0.0)] * (len(self.token_ids) - len(self.logprobs)))
            self.logprobs.extend(logprobs or [TokenLogprob(0.0)] * len(ids))
        self.token_ids.extend(ids)

    def event(self, worker_id: str) -> TokensArrived | None:
        if not self.handles:
            return None
        return TokensArrived(
            worker_id, self.handles, self.first_indexes, self.counts, self.token_ids, self.logprobs
        )


class TokenWheel:
    """What one worker has sent and the core has not seen yet."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self._slots: list[dict[int, _Held]] = [{} for _ in range(SLOTS)]
        self._turn = 0
        self._held = 0
        self.waits_s: list[float] = []  # of rows that were let out, for whoever takes them

    @property
    def empty(self) -> bool:
        return self._held == 0

    def put(self, event: TokensArrived, now_s: float) -> TokensArrived | None:
        """Hold the tokens of an event; returns those that must not wait.

        First tokens go straight through, and so does whatever does not continue what is held: the
        core is to see it as it came.
        """
        slots = self._slots
        token_ids, logprobs = list(event.token_ids), list(event.logprobs)
        out = _Columns()
        start = 0
        for handle, first, count in zip(
            event.handles, event.first_indexes, event.counts, strict=True
        ):
            end = start + count
            ids, told = token_ids[start:end], logprobs[start:end]
            start = end
            slot = slots[handle % SLOTS]
            held = slot.get(handle)
            if held is None:
                if first == 0:
                    out.add(handle, first, ids, told)
                else:
                    slot[handle] = _Held(first, now_s, ids, told)
                    self._held += 1
            elif held.first_index + len(held.token_ids) == first and bool(told) == bool(
                held.logprobs
            ):
                held.token_ids += ids
                held.logprobs += told
            else:
                self._let_out(slot, handle, out, now_s)
                out.add(handle, first, ids, told)
        return out.event(self._worker_id)

    def take(self, handles: Iterable[int], now_s: float) -> TokensArrived | None:
        """Let out what is held of some requests, since what comes next depends on it."""
        if self._held == 0:
            return None
        out = _Columns()
        for handle in handles:
            slot = self._slots[handle % SLOTS]
            if handle in slot:
                self._let_out(slot, handle, out, now_s)
        return out.event(self._worker_id)

    def turn(self, slots: int, now_s: float) -> TokensArrived | None:
        """Let out the next so many slots."""
        out = _Columns()
        for slot in self._next_slots(slots):
            for handle in list(slot):
                self._let_out(slot, handle, out, now_s)
        return out.event(self._worker_id)

    def _next_slots(self, count: int) -> Iterator[dict[int, _Held]]:
        for _ in range(count):
            yield self._slots[self._turn]
            self._turn = (self._turn + 1) % SLOTS

    def _let_out(self, slot: dict[int, _Held], handle: int, out: _Columns, now_s: float) -> None:
        held = slot.pop(handle)
        self._held -= 1
        self.waits_s.append(now_s - held.since_s)
        out.add(handle, held.first_index, held.token_ids, held.logprobs)
