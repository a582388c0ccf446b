"""The text side of one request: characters completed, stop strings found, special tokens hidden."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, Protocol

from router.text.stop_strings import StopStrings


class TokenDecoder(Protocol):
    """Turns tokens into text as they come."""

    def feed(self, token_ids: Sequence[int]) -> str: ...

    def flush(self) -> str: ...


@dataclass(slots=True, init=False)
class TextPiece:
    """What some tokens gave. With `stopped`, tokens after the first `used_tokens` do not count."""

    text: Final[str]
    used_tokens: Final[int]
    stopped: Final[bool]

    # One for each delta: its own is compiled, which makes it quicker than one that is generated.
    def __init__(self, text: str, used_tokens: int, stopped: bool) -> None:
        self.text = text
        self.used_tokens = used_tokens
        self.stopped = stopped


class TextStream:
    """Feeds one request's tokens through its decoder and its stop strings."""

    def __init__(
        self, decoder: TokenDecoder, stops: Sequence[str], hidden_ids: AbstractSet[int]
    ) -> None:
        """`hidden_ids` end the request and are not part of its text."""
        self._decoder = decoder
        self._stops = StopStrings(stops) if stops else None
        self._hidden_ids = hidden_ids

    def feed(self, token_ids: Sequence[int]) -> TextPiece:
        """The text that these tokens let out."""
        if self._stops is None:
            return TextPiece(self._decoder.feed(self._shown(token_ids)), len(token_ids), False)
        # One by one, so that the same token ends the request however the stream was cut.
        shown = []
        for used, token_id in enumerate(token_ids, start=1):
            text, stopped = self._stops.feed(self._decoder.feed(self._shown((token_id,))))
            shown.append(text)
            if stopped:
                return TextPiece("".join(shown), used, True)
        return TextPiece("".join(shown), len(token_ids), False)

    def flush(self) -> tuple[str, bool]:
        """The rest of the text, and whether a stop string was in it."""
        text = self._decoder.flush()
        if self._stops is None:
            return text, False
        shown, stopped = self._stops.feed(text)
        return (shown, True) if stopped else (shown + self._stops.flush(), False)

    def _shown(self, token_ids: Sequence[int]) -> Sequence[int]:
        # A token that ends the request can only be the last one.
        return token_ids[:-1] if token_ids and token_ids[-1] in self._hidden_ids else token_ids
