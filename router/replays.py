"""Answers of the recent past, so that a client that retries gets the same one and no second run.

Holds good answers only, of requests whose id the client chose, for a while and up to so many
tokens. Per process: a retry that reaches another router runs again, and gives the same tokens,
since what a client leaves to chance is drawn from its request id (see `sampling.py`). Pure.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from dataclasses import dataclass

from router.outbox import Outbox
from router.requests import GenerationRequest


def content_of(request: GenerationRequest) -> bytes:
    """What makes two requests the same but for their ids and deadlines."""
    digest = hashlib.blake2b(array("Q", request.token_ids).tobytes(), digest_size=16)
    digest.update(request.sampling.SerializeToString(deterministic=True))
    digest.update(repr((request.stop, request.class_rank)).encode())
    return digest.digest()


@dataclass(frozen=True, slots=True)
class _Kept:
    content: bytes
    outbox: Outbox
    until_s: float


class Replays:
    """Finished answers by request id, the oldest dropped first."""

    def __init__(self, window_s: float, most_tokens: int) -> None:
        self._window_s = window_s
        self._most_tokens = most_tokens
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, request_id: str, content: bytes, outbox: Outbox, now_s: float) -> None:
        """Keep a finished answer from now on."""
        self.drop(request_id)
        self._kept[request_id] = _Kept(content, outbox, now_s + self._window_s)
        self._tokens += outbox.tokens
        self._expire(now_s)

    def find(self, request_id: str, now_s: float) -> tuple[bytes, Outbox] | None:
        """The answer under an id and the content it answers, if it is not too old."""
        self._expire(now_s)
        kept = self._kept.get(request_id)
        return None if kept is None else (kept.content, kept.outbox)

    def drop(self, request_id: str) -> None:
        """Forget an answer."""
        kept = self._kept.pop(request_id, None)
        if kept is not None:
            self._tokens -= kept.outbox.tokens

    def _expire(self, now_s: float) -> None:
        while self._kept:
            request_id, oldest = next(iter(self._kept.items()))
            if oldest.until_s > now_s and self._tokens <= self._most_tokens:
                return
            self.drop(request_id)
