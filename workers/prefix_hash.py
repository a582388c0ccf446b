"""Names of prompt prefixes: chained hashes of blocks of tokens.

One module for workers, which name what they cache, and for the router, which looks for it: both
must get the same names from the same tokens. Pure, and importable without the rest of a worker.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

_HASH_BYTES = 16
# What crosses processes is 60 bits: enough for a hint, and the largest that takes 32 bytes as a
# Python int, of which an index holds a million.
_NAME_SHIFT = 4


def chain_hashes(token_ids: Sequence[int], block_tokens: int) -> list[bytes]:
    """Hash i names the first i full blocks of a prompt, each chained to the one before.

    A cryptographic hash, because a collision would answer one client from another's prompt.
    """
    hashes = [b""]
    for begin in range(0, len(token_ids) - block_tokens + 1, block_tokens):
        hashes.append(extend(hashes[-1], token_ids[begin : begin + block_tokens]))
    return hashes


def extend(chain: bytes, token_ids: Sequence[int]) -> bytes:
    """The hash of what `chain` names and the tokens after it, at most one block of them."""
    return blake2b(chain + array("I", token_ids).tobytes(), digest_size=_HASH_BYTES).digest()


def name(chain: bytes) -> int:
    """A hash as messages carry it: 60 bits; 0 names the empty prefix."""
    return int.from_bytes(chain[:8], "big") >> _NAME_SHIFT
