"""Names of prefixes are what they are defined to be: workers and routers must agree on them."""

from __future__ import annotations

from array import array
from hashlib import blake2b

from hypothesis import given
from hypothesis import strategies as st

from router.core.prefixes import PrefixKeys
from workers.prefix_hash import chain_hashes, extend, name, names


def _plain(token_ids: list[int], block_tokens: int) -> list[bytes]:
    """Block by block: the hash so far and the block's tokens as 32 bits each, hashed."""
    chains = [b""]
    for begin in range(0, len(token_ids) - block_tokens + 1, block_tokens):
        block = b"".join(
            token.to_bytes(4, "little") for token in token_ids[begin : begin + block_tokens]
        )
        chains.append(blake2b(chains[-1] + block, digest_size=16).digest())
    return chains


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.integers(1, 9))
def test_hashes_are_chained_block_by_block(token_ids: list[int], block_tokens: int) -> None:
    chains = _plain(token_ids, block_tokens)
    assert chain_hashes(token_ids, block_tokens) == chains
    assert chain_hashes(array("I", token_ids), block_tokens) == chains
    keys = PrefixKeys.of(token_ids, block_tokens)
    assert keys.names == names(chains) == [name(chain) for chain in chains]
    assert [n < 2**60 for n in keys.names] == [True] * len(chains)
    tail = token_ids[(len(chains) - 1) * block_tokens :]
    assert keys.tail_name(len(chains) - 1, len(tail)) == name(extend(chains[-1], tail))
