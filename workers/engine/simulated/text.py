"""Which tokens a simulated engine makes: a function of all tokens before, as with a real model.

So an answer that goes on elsewhere, from a prompt that now holds the tokens made so far, is the one
that an undisturbed run gives, and a test can tell a wrong token, a lost one and a doubled one.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence

from workers.engine.chosen import Chosen
from workers.engine.commands import Sampling

_MIX = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def context_of(token_ids: Sequence[int]) -> int:
    """A digest of tokens; that of a longer text follows from that of its beginning."""
    return zlib.crc32(array("I", token_ids).tobytes())


def extended(context: int, token_id: int) -> int:
    """The digest after one more token."""
    return zlib.crc32(token_id.to_bytes(4, "little"), context)


def next_token(context: int, sampling: Sampling, vocab_size: int) -> int:
    """The token after a context; the seed counts only where one would be sampled."""
    seed = sampling.seed if sampling.temperature > 0.0 else 0
    mixed = ((context ^ seed) * _MIX) & _MASK
    return (mixed >> 32) % vocab_size


def chosen(token_id: int, sampling: Sampling, vocab_size: int) -> Chosen:
    """The token with made-up log-probabilities where they are asked for."""
    if not sampling.logprobs:
        return Chosen(token_id)
    top = tuple(
        ((token_id + rank) % vocab_size, -0.5 * (rank + 1)) for rank in range(sampling.top_logprobs)
    )
    return Chosen(token_id, -0.5, top)


def expected_answer(
    prompt: Sequence[int], sampling: Sampling, vocab_size: int, tokens: int
) -> list[int]:
    """The first tokens of the answer to a prompt, stop tokens or not, to check others against."""
    context, answer = context_of(prompt), []
    for _ in range(tokens):
        answer.append(next_token(context, sampling, vocab_size))
        context = extended(context, answer[-1])
    return answer
