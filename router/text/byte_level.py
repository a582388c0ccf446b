"""Incremental text from byte-level BPE tokens: exact, and a table look-up for each token.

Every token of such a vocabulary stands for fixed bytes, so the only state between two steps is
an unfinished UTF-8 character. Most current checkpoints are of this kind, and the router decodes
every token of every request, so the general way (see general.py) would cost it ten times more.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer


def _character_bytes() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte, inverted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + position): byte for position, byte in enumerate(rest)
    }


_BYTE_OF = _character_bytes()


class TokenBytes(dict[int, bytes]):
    """The bytes of each token id, filled as ids are seen; hidden ids have none."""

    def __init__(self, tokenizer: Tokenizer, hidden_ids: Iterable[int]) -> None:
        super().__init__(dict.fromkeys(hidden_ids, b""))
        self._tokenizer = tokenizer

    def __missing__(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        self[token_id] = b"" if token is None else token_bytes(token)
        return self[token_id]


def token_bytes(token: str) -> bytes:
    """What a token stands for; added tokens stand for their own characters."""
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()


class ByteLevelDecoder:
    """The text of one request."""

    def __init__(self, table: TokenBytes) -> None:
        self._table = table
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_ids: Sequence[int]) -> str:
        """The characters that these tokens complete."""
        table = self._table
        return self._utf8.decode(b"".join([table[token_id] for token_id in token_ids]))

    def flush(self) -> str:
        """What is left of a character that was never completed."""
        return self._utf8.decode(b"", final=True)
