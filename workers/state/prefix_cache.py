"""Which prefixes of earlier prompts can be reused, and which were least recently.

A hybrid model resumes a prompt only from a place where both its KV and its Mamba state are known,
so the unit is a checkpoint: a number of tokens, the KV blocks that hold them, and a slot with a
copy of the conv and SSM state after them. A block without a checkpoint after it is of no use, so
blocks are kept by checkpoints and by nothing else. Pure: numbers and hashes, no memory.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

_HASH_BYTES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """State after `tokens` tokens. Its last block is a private copy when it is partly filled."""

    tokens: int
    blocks: tuple[int, ...]
    slot: int
    chain: bytes  # hash of all full blocks
    tail: tuple[int, ...]  # the tokens after them


def chain_hashes(token_ids: Sequence[int], block_tokens: int) -> list[bytes]:
    """Hash i names the first i full blocks of a prompt, each chained to the one before.

    A cryptographic hash, because a collision would answer one client from another's prompt.
    """
    hashes = [b""]
    for begin in range(0, len(token_ids) - block_tokens + 1, block_tokens):
        block = array("I", token_ids[begin : begin + block_tokens]).tobytes()
        hashes.append(blake2b(hashes[-1] + block, digest_size=_HASH_BYTES).digest())
    return hashes


class PrefixCache:
    """Checkpoints by the tokens that they cover, in order of last use."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._by_chain: dict[bytes, dict[tuple[int, ...], Checkpoint]] = {}
        self._by_use: OrderedDict[Checkpoint, None] = OrderedDict()  # oldest first

    def __len__(self) -> int:
        return len(self._by_use)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """All of them, the least recently used first."""
        return tuple(self._by_use)

    def find(self, token_ids: Sequence[int], most_tokens: int) -> Checkpoint | None:
        """The longest checkpoint of at most `most_tokens` tokens that `token_ids` begin with."""
        hashes = chain_hashes(token_ids, self._block_tokens)
        for full_blocks in range(len(hashes) - 1, -1, -1):
            begin = full_blocks * self._block_tokens
            best: Checkpoint | None = None
            for tail, checkpoint in self._by_chain.get(hashes[full_blocks], {}).items():
                fits = checkpoint.tokens <= most_tokens
                if fits and tuple(token_ids[begin : begin + len(tail)]) == tail:
                    best = max(best or checkpoint, checkpoint, key=lambda found: found.tokens)
            if best is not None:
                return best
        return None

    def key(self, token_ids: Sequence[int]) -> tuple[bytes, tuple[int, ...]]:
        """What a checkpoint after exactly these tokens is filed under: (chain, tail)."""
        full = len(token_ids) - len(token_ids) % self._block_tokens
        return chain_hashes(token_ids, self._block_tokens)[-1], tuple(token_ids[full:])

    def has(self, chain: bytes, tail: tuple[int, ...]) -> bool:
        """Whether there is a checkpoint after exactly these tokens."""
        return tail in self._by_chain.get(chain, {})

    def add(self, checkpoint: Checkpoint) -> None:
        """File a checkpoint as the most recently used; there must be none for its tokens."""
        self._by_chain.setdefault(checkpoint.chain, {})[checkpoint.tail] = checkpoint
        self._by_use[checkpoint] = None

    def touch(self, checkpoint: Checkpoint) -> None:
        """Note that a checkpoint was used."""
        self._by_use.move_to_end(checkpoint)

    def pop_oldest(self) -> Checkpoint | None:
        """Forget the least recently used checkpoint and return it."""
        if not self._by_use:
            return None
        checkpoint, _ = self._by_use.popitem(last=False)
        tails = self._by_chain[checkpoint.chain]
        del tails[checkpoint.tail]
        if not tails:
            del self._by_chain[checkpoint.chain]
        return checkpoint
