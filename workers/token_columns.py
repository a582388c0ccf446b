"""The tokens of a step's whole batch in columns, as one message carries them.

Collected in lists, because appending to the column of a message costs several times as much, and
there are as many rows in a second as tokens.
"""

from __future__ import annotations

from protos.tandem.v1 import worker_pb2
from workers.engine.events import TokenRow


class TokenColumns:
    """Rows that wait to be sent, in the order in which they came."""

    __slots__ = (
        "_counts",
        "_first_indexes",
        "_handles",
        "_logprobs",
        "_token_ids",
        "_top_counts",
        "_top_logprobs",
        "_top_token_ids",
    )

    def __init__(self) -> None:
        self._handles: list[int] = []
        self._first_indexes: list[int] = []
        self._counts: list[int] = []
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._top_counts: list[int] = []
        self._top_token_ids: list[int] = []
        self._top_logprobs: list[float] = []

    def __bool__(self) -> bool:
        return bool(self._handles)

    def add(self, handle: int, row: TokenRow) -> None:
        """The new tokens of the request that a handle stands for."""
        chosen = row.chosen
        self._handles.append(handle)
        self._first_indexes.append(row.first_index)
        self._counts.append(len(chosen))
        before = len(self._token_ids)
        self._token_ids.extend([choice.token_id for choice in chosen])
        # Columns are all or nothing: tokens before the first that asked get zeros.
        if self._logprobs or any(choice.logprob is not None for choice in chosen):
            self._logprobs.extend([0.0] * (before - len(self._logprobs)))
            self._logprobs.extend([choice.logprob or 0.0 for choice in chosen])
        if self._top_counts or any(choice.top for choice in chosen):
            self._top_counts.extend([0] * (before - len(self._top_counts)))
            for choice in chosen:
                self._top_counts.append(len(choice.top))
                for token_id, logprob in choice.top:
                    self._top_token_ids.append(token_id)
                    self._top_logprobs.append(logprob)

    def batch(self) -> worker_pb2.TokenBatch:
        """All of them as a message."""
        return worker_pb2.TokenBatch(
            handles=self._handles,
            first_indexes=self._first_indexes,
            counts=self._counts,
            token_ids=self._token_ids,
            logprobs=self._logprobs,
            top_counts=self._top_counts,
            top_token_ids=self._top_token_ids,
            top_logprobs=self._top_logprobs,
        )
