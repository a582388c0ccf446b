"""Prompts: the wanted number of tokens, real text, and only the sharing that was asked for."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.asking import Asking, Prompts
from loadgen.errors import LoadError
from loadgen.prompts.source import PromptSource, shipped_text
from loadgen.prompts.tokens import TextTokens
from loadgen.sessions import Session, Turn
from loadgen.traces.reading import read_trace
from loadgen.traces.request import BLOCK_TOKENS

TINY = Path(__file__).parents[3] / "workers" / "checkpoints" / "tandem-tiny"
MOONCAKE = Path(__file__).parents[2] / "data" / "mooncake_conversation_200.jsonl"


@functools.cache
def tokens() -> TextTokens:
    return TextTokens.of_folder(TINY)


@functools.cache
def source(seed: int = 0) -> PromptSource:
    return PromptSource(tokens().encode_long(shipped_text()[:400_000]), tokens().vocab_size, seed)


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many the two have in common at their beginning."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in same)


def test_the_shipped_text_is_english_and_has_no_numbers_of_verses() -> None:
    text = shipped_text()
    assert text.startswith("In the beginning God created the heaven and the earth.")
    assert len(text) > 1_500_000
    assert not any(character.isdigit() for character in text)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5000), st.booleans())
def test_a_prompt_has_exactly_the_wanted_tokens(number: int, wanted: int, real: bool) -> None:
    from_text = source() if real else PromptSource(None, 2048)
    prompt = from_text.fresh(number, wanted)
    assert len(prompt) == wanted
    assert prompt == from_text.fresh(number, wanted)
    assert all(0 <= token < 2048 for token in prompt)


def test_text_stays_text() -> None:
    words = tokens().decode(source().fresh(3, 200)).split()
    known = set(shipped_text()[:400_000].split())
    # The first and the last may be cut.
    assert set(words[1:-1]) <= known
    assert source().kind == "text"
    assert PromptSource(None, 2048).kind == "random tokens"


def test_prompts_of_different_requests_do_not_begin_alike() -> None:
    prompts = sorted(source().fresh(number, 64) for number in range(3000))
    longest = max(shared(one, other) for one, other in itertools.pairwise(prompts))
    assert longest < 48


def test_every_beginning_is_used_before_one_comes_again() -> None:
    short = PromptSource(list(range(1000)), 1000)
    assert len({short.fresh(number, 1)[0] for number in range(1000)}) == 1000


def test_prompts_longer_than_the_text_go_on_at_its_beginning() -> None:
    short = PromptSource(list(range(10)), 10)
    prompt = short.fresh(4, 25)
    assert all(after == (before + 1) % 10 for before, after in itertools.pairwise(prompt))


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(0, 30), min_size=1, max_size=5, unique=True),
    st.integers(1, BLOCK_TOKENS),
)
def test_two_prompts_share_the_blocks_that_their_names_share(
    one: list[int], other: list[int], last: int
) -> None:
    common = shared(one, other)
    first = source().of_blocks(one, 1, BLOCK_TOKENS * (len(one) - 1) + last)
    second = source().of_blocks(other, 2, BLOCK_TOKENS * len(other))
    found = shared(first, second)
    assert found >= min(common * BLOCK_TOKENS, len(first))
    # Beyond that only what texts have in common by chance.
    assert found < common * BLOCK_TOKENS + 48


def test_a_real_trace_becomes_prompts_with_its_sharing() -> None:
    requests = read_trace(MOONCAKE)[:60]
    prompts = [
        source().of_blocks(request.hash_ids, number, request.prompt_tokens)
        for number, request in enumerate(requests)
    ]
    for request, prompt in zip(requests, prompts, strict=True):
        assert len(prompt) == request.prompt_tokens
    for place, (one, prompt) in enumerate(zip(requests, prompts, strict=True)):
        for other, second in zip(requests[:place], prompts[:place], strict=True):
            common = shared(one.hash_ids, other.hash_ids)
            length = min(common * BLOCK_TOKENS, len(prompt), len(second))
            assert length <= shared(prompt, second) < length + 48


def test_names_that_end_before_the_prompt_leave_the_rest_to_its_number() -> None:
    first = source().of_blocks([5], 1, 700)
    second = source().of_blocks([5], 2, 700)
    assert BLOCK_TOKENS <= shared(first, second) < BLOCK_TOKENS + 48


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 400))
def test_a_text_of_exactly_the_wanted_tokens_is_found(number: int, wanted: int) -> None:
    text, count = tokens().text_of(source().fresh(number, wanted))
    assert len(tokens().encode(text)) == count == wanted


class _EvenTokens(TextTokens):
    """No text has an odd number of tokens."""

    def __init__(self) -> None:
        pass

    def encode(self, text: str) -> list[int]:
        return [7] * (2 * len(text))

    def decode(self, ids: Sequence[int]) -> str:
        return "a" * (len(ids) // 2)


def test_without_a_text_of_that_count_the_nearest_is_sent_and_told_about() -> None:
    text, count = _EvenTokens().text_of([7] * 101)
    assert (len(text), count) in ((50, 100), (51, 102))
    asking = Asking(PromptSource([7] * 1000, 8), "messages", _EvenTokens())
    prompts = Prompts(asking)
    for number in range(3):
        prompts.first(Session(number, 0.0, (Turn(101 + number, 5),)))
    assert prompts.inexact == 2


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="--model"):
        TextTokens.of_folder(tmp_path)
