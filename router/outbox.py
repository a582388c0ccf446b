"""What waits for one client: tokens become text here, and what waits goes out as one delta.

A client that reads slowly gets fewer and larger deltas, never a queue of them; what can wait is
bounded by the request's own max_tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from protos.tandem.v1 import common_pb2
from router.core.instructions import Finish
from router.core.reasons import WELL
from router.core.tokens import TokenLogprob
from router.report import report_message
from router.requests import Delta, Finished
from router.text.stream import TextStream


class Outbox:
    """Filled by the dispatcher, emptied by one reader."""

    def __init__(self, text: TextStream | None, stops_on_text: bool) -> None:
        """With `stops_on_text`, text is made as tokens come, so that a stop string ends the
        request at once; otherwise only when the client takes it, many tokens at a time."""
        self._text = text
        self._eager = stops_on_text
        self._undecoded: list[int] = []
        self._shown: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._count = 0
        self._finished: Finished | None = None
        self._news = asyncio.Event()
        self.stopped = False  # a stop string came; later tokens do not count

    def push(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]) -> None:
        """Add the next tokens."""
        if self.stopped:
            return
        self._count += len(token_ids)
        self._token_ids.extend(token_ids)
        self._logprobs.extend(logprobs)
        if self._text is not None:
            self._undecoded.extend(token_ids)
        if self._eager:
            self._decode()
        self._news.set()

    def finish(self, finish: Finish) -> None:
        """Say that no more tokens come."""
        self._decode()
        reason, detail = finish.reason, finish.detail
        if self._text is not None and not self.stopped:
            rest, stopped = self._text.flush()
            self._shown.append(rest)
            self.stopped = stopped
        if self.stopped and reason in WELL:
            reason, detail = common_pb2.REASON_STOP_STRING, ""
        self._finished = Finished(
            request_id=finish.request_id,
            reason=reason,
            detail=detail,
            prompt_tokens=finish.report.prompt_tokens,
            completion_tokens=self._count,
            report=report_message(finish.report),
            retry_after_s=finish.retry_after_s,
        )
        self._news.set()

    async def next(self) -> Delta | Finished:
        """Everything that waits, as soon as something does; Finished comes last, once."""
        while True:
            await self._news.wait()
            self._decode()
            if self._token_ids or any(self._shown):
                delta = Delta("".join(self._shown), self._token_ids, self._logprobs)
                self._shown, self._token_ids, self._logprobs = [], [], []
                if self._finished is None:
                    self._news.clear()
                return delta
            if self._finished is not None:
                return self._finished
            self._news.clear()

    def _decode(self) -> None:
        if self._text is None or not self._undecoded:
            return
        piece = self._text.feed(self._undecoded)
        self._shown.append(piece.text)
        if piece.stopped:
            self.stopped = True
            unused = len(self._undecoded) - piece.used_tokens
            if unused:
                self._count -= unused
                del self._token_ids[-unused:]
                del self._logprobs[-unused:]
        self._undecoded = []
