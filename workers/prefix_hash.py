"""Names of prompt prefixes: chained hashes of blocks of tokens.

One module for workers, which name what they cache, and for the router, which looks for it: both
must get the same names from the same tokens. Pure, and importable without the rest of a worker.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from hashlib import blake2b

_HASH_BYTES = 16
# What crosses processes is 60 bits: enough for a hint, and the largest that takes 32 bytes as a
# Python int, of which an index holds a million.
_NAME_SHIFT = 4
_HALVES = struct.Struct(">QQ")  # of a hash; the first one names it


def chain_hashes(token_ids: Sequence[int], block_tokens: int) -> list[bytes]:
    """Hash i names the first i full blocks of a prompt, each chained to the one before.

    A cryptographic hash, because a collision would answer one client from another's prompt.
    """
    prompt = array("I", token_ids)
    step = block_tokens * prompt.itemsize
    data, chain = prompt.tobytes(), b""
    hashes = [chain]
    for end in range(step, len(data) + 1, step):
        chain = blake2b(chain + data[end - step : end], digest_size=_HASH_BYTES).digest()
        hashes.append(chain)
    return hashes


def extend(chain: bytes, token_ids: Sequence[int]) -> bytes:
    """The hash of what `chain` names and the tokens after it, at most one block of them."""
    return blake2b(chain + array("I", token_ids).tobytes(), digest_size=_HASH_BYTES).digest()


def name(chain: bytes) -> int:
    """A hash as messages carry it: 60 bits; 0 names the empty prefix."""
    return int.from_bytes(chain[:8], "big") >> _NAME_SHIFT


def names(chains: Sequence[bytes]) -> list[int]:
    """`name` of each of the hashes that `chain_hashes` gives, in one go."""
    halves = _HALVES.iter_unpack(b"".join(chains))
    empty = [0] if chains and not chains[0] else []
    return empty + [half >> _NAME_SHIFT for half, _ in halves]
