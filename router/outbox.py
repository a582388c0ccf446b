"""What one request has for its clients: tokens become text here, and what waits goes out as one
delta.

A client that reads slowly gets fewer and larger deltas, never a queue of them; what can wait is
bounded by the request's own max_tokens. Usually there is one reader; a client that retries under
the same request id is a second one, and reads everything from the beginning.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence

from protos.tandem.v1 import common_pb2
from router.core.instructions import Finish
from router.core.reasons import WELL
from router.core.tokens import TokenLogprob
from router.report import report_message
from router.requests import Delta, Finished
from router.text.stream import TextStream


class Outbox:
    """Filled by the dispatcher, emptied by readers."""

    def __init__(self, text: TextStream | None, stops_on_text: bool, keeps: bool = False) -> None:
        """With `stops_on_text`, text is made as tokens come, so that a stop string ends the
        request at once; otherwise only when a client takes it, many tokens at a time. What was
        read is dropped, unless this `keeps` it for further readers."""
        self._text = text
        self._eager = stops_on_text
        self._keeps = keeps
        self._undecoded: list[int] = []
        self._shown: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._listeners: list[Callable[[], None]] = []
        self._since_s: float | None = None  # when what no reader has taken began to wait
        self.tokens = 0
        self.finished: Finished | None = None
        self.stopped = False  # a stop string came; later tokens do not count

    def push(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob], now_s: float
    ) -> None:
        """Add the next tokens."""
        if self.stopped:
            return
        if self._since_s is None:
            self._since_s = now_s
        self.tokens += len(token_ids)
        self._token_ids.extend(token_ids)
        self._logprobs.extend(logprobs)
        if self._text is not None:
            self._undecoded.extend(token_ids)
        if self._eager:
            self._decode()
        self._wake()

    def finish(self, finish: Finish) -> None:
        """Say that no more tokens come."""
        self._decode()
        reason, detail = finish.reason, finish.detail
        if self._text is not None and not self.stopped:
            rest, stopped = self._text.flush()
            if rest:
                self._shown.append(rest)
            self.stopped = stopped
        if self.stopped and reason in WELL:
            reason, detail = common_pb2.REASON_STOP_STRING, ""
        self.finished = Finished(
            request_id=finish.request_id,
            reason=reason,
            detail=detail,
            prompt_tokens=finish.report.prompt_tokens,
            completion_tokens=self.tokens,
            report=report_message(finish.report),
            retry_after_s=finish.retry_after_s,
        )
        self._wake()

    def _wake(self) -> None:
        for listener in tuple(self._listeners):
            listener()

    def _decode(self) -> None:
        if self._text is None or not self._undecoded:
            return
        piece = self._text.feed(self._undecoded)
        if piece.text:
            self._shown.append(piece.text)
        if piece.stopped:
            self.stopped = True
            unused = len(self._undecoded) - piece.used_tokens
            if unused:
                self.tokens -= unused
                del self._token_ids[-unused:]
                del self._logprobs[-unused:]
        self._undecoded = []


class OutboxReader:
    """One client's place in an outbox."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._texts_read = 0
        self._tokens_read = 0
        self.since_s: float | None = None  # when what was read last began to wait

    async def next(self) -> Delta | Finished:
        """Everything that is new, as soon as something is; Finished comes last, once."""
        outbox = self._outbox
        while not self._has_news:
            if outbox.finished is not None:
                return outbox.finished
            await self._listening(_resolve)
        return self._take()

    async def pour(self, send: Callable[[Delta], bool]) -> Finished | None:
        """Give `send` everything that is new in the moment in which it comes, which costs a third
        of what waking a task for it does; until it answers False, for no more at present (None), or
        nothing can come (Finished)."""

        def look(done: asyncio.Future[None]) -> None:
            if done.done():
                return
            try:
                while self._has_news:
                    if not send(self._take()):
                        done.set_result(None)
                        return
            except Exception as error:  # noqa: BLE001 - for whoever pours, not for who pushed
                done.set_exception(error)
                return
            if self._outbox.finished is not None:
                done.set_result(None)

        await self._listening(look)
        return None if self._has_news else self._outbox.finished

    @property
    def _has_news(self) -> bool:
        outbox = self._outbox
        return len(outbox._token_ids) > self._tokens_read or len(outbox._shown) > self._texts_read

    async def _listening(self, look: Callable[[asyncio.Future[None]], None]) -> None:
        """Have `look` called at every change until it resolves its future."""
        done = asyncio.get_running_loop().create_future()
        listener = functools.partial(look, done)
        listeners = self._outbox._listeners
        if look is not _resolve:
            listener()  # at what has come before
        listeners.append(listener)
        try:
            await done
        finally:
            listeners.remove(listener)

    def _take(self) -> Delta:
        outbox = self._outbox
        outbox._decode()
        self.since_s, outbox._since_s = outbox._since_s, None
        if outbox._keeps:
            delta = Delta(
                "".join(outbox._shown[self._texts_read :]),
                outbox._token_ids[self._tokens_read :],
                outbox._logprobs[self._tokens_read :],
            )
            self._texts_read = len(outbox._shown)
            self._tokens_read = len(outbox._token_ids)
            return delta
        delta = Delta("".join(outbox._shown), outbox._token_ids, outbox._logprobs)
        outbox._shown, outbox._token_ids, outbox._logprobs = [], [], []
        return delta


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
