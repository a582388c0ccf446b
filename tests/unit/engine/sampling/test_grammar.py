"""Structured output: whatever the model prefers, the text parses; drafts change nothing."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer
from torch import Tensor

from protos.tandem.v1.common_pb2 import REASON_INVALID_ARGUMENT, REASON_STOP_TOKEN
from tests.unit.engine.sampling.histories import Drafter, generate
from workers.engine.commands import Grammar, Sampling
from workers.engine.sampling.grammar import GrammarCompiler, GrammarError
from workers.engine.sampling.state import SamplingState
from workers.engine.sampling.verify import choose_windows
from workers.training.export import DEFAULT_OUTPUT

_TOKENIZER_FILE = Path(__file__).parents[4] / DEFAULT_OUTPUT / "tokenizer.json"
_PADDED = 16  # logits that no token of the tokenizer has, as in padded vocabularies


class _Point(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    x: bool
    y: Literal['no "quotes"'] = 'no "quotes"'


class _Person(BaseModel):
    """Checks answers independently of the library that shapes them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(max_length=8)]
    age: Annotated[int, Field(ge=0, le=150)]
    tags: Annotated[list[Literal["a", "ü", None]], Field(max_length=3)] = []
    nested: _Point


_SCHEMA = json.dumps(_Person.model_json_schema())
_REGEX = r"(foo|bär){1,3}-[0-9a-f]{4}(\n|/\\)?"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(_TOKENIZER_FILE))


def _id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None
    return token_id


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(_TOKENIZER_FILE)


@pytest.fixture(scope="module")
def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(_id(tokenizer, token) for token in ("</s>", "<|im_end|>"))


def _random_logits(vocab_size: int) -> Tensor:
    """By place and seed, not by history: cheap, and as unhelpful."""
    return torch.randn(4000, vocab_size, generator=torch.Generator().manual_seed(5)) * 4


@pytest.fixture(scope="module")
def table(tokenizer: Tokenizer) -> Tensor:
    return _random_logits(tokenizer.get_vocab_size() + _PADDED)


def _answer(
    compiler: GrammarCompiler,
    sampling: Sampling,
    table: Tensor,
    window: int = 1,
    drafter: Drafter | None = None,
) -> SamplingState:
    state = SamplingState(sampling, (), compiler.compile(sampling))

    def model(history: Sequence[int]) -> Tensor:
        return table[(len(history) + 31 * sampling.seed) % len(table)]

    generate(model, (), state, window, drafter)
    return state


def _sampling(
    kind: Literal["json_schema", "json_object", "regex"],
    text: str,
    stop_ids: frozenset[int],
    seed: int = 0,
    temperature: float = 1.0,
) -> Sampling:
    return Sampling(
        600,
        temperature,
        seed=seed,
        stop_token_ids=stop_ids,
        repetition_penalty=1.1,
        grammar=Grammar(kind, text),
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_random_logits_give_valid_json_and_drafts_change_nothing(
    compiler: GrammarCompiler,
    tokenizer: Tokenizer,
    table: Tensor,
    stop_ids: frozenset[int],
    seed: int,
    temperature: float,
) -> None:
    sampling = _sampling("json_schema", _SCHEMA, stop_ids, seed, temperature)
    alone = _answer(compiler, sampling, table)
    assert alone.ended is not None
    assert alone.ended.reason == REASON_STOP_TOKEN
    _Person.model_validate_json(tokenizer.decode(alone.output_token_ids))
    rng = random.Random(seed)

    def half_right(history: Sequence[int]) -> list[int]:
        ahead = alone.output_token_ids[len(history) : len(history) + 3]
        return [rng.choice([token_id, rng.randrange(table.shape[1])]) for token_id in ahead]

    drafted = _answer(compiler, sampling, table, 4, half_right)
    assert (drafted.output_token_ids, drafted.ended) == (alone.output_token_ids, alone.ended)


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_random_logits_give_text_that_the_regex_matches(
    compiler: GrammarCompiler,
    tokenizer: Tokenizer,
    table: Tensor,
    stop_ids: frozenset[int],
    seed: int,
    window: int,
) -> None:
    rng = random.Random(seed)

    def nonsense(history: Sequence[int]) -> list[int]:
        return [rng.randrange(table.shape[1]) for _ in range(3)]

    sampling = _sampling("regex", _REGEX, stop_ids, seed)
    state = _answer(compiler, sampling, table, window, nonsense)
    assert state.ended is not None
    assert state.ended.reason == REASON_STOP_TOKEN
    assert re.fullmatch(_REGEX, tokenizer.decode(state.output_token_ids))


def test_any_json_object_is_an_object_even_if_the_model_wants_blanks(
    compiler: GrammarCompiler, tokenizer: Tokenizer, stop_ids: frozenset[int]
) -> None:
    """A preference for blanks and then for closing brackets must end in a whole object."""
    preferences = torch.zeros(1, tokenizer.get_vocab_size())
    for text, preference in (("\n", 9.0), ("}", 8.0)):
        preferences[0, tokenizer.encode(text).ids[-1]] = preference
    preferences[0, list(stop_ids)] = 20.0
    state = _answer(compiler, _sampling("json_object", "", stop_ids, 0, 0.0), preferences)
    assert state.ended is not None
    assert state.ended.reason == REASON_STOP_TOKEN
    assert isinstance(json.loads(tokenizer.decode(state.output_token_ids)), dict)


def test_a_stop_token_that_the_grammar_also_knows_only_comes_at_the_end(
    compiler: GrammarCompiler, tokenizer: Tokenizer, table: Tensor
) -> None:
    stop = _id(tokenizer, "a")
    state = _answer(compiler, _sampling("regex", "[ab]{6}", frozenset({stop}), 1), table)
    assert state.output_token_ids.index(stop) == len(state.output_token_ids) - 1
    assert re.fullmatch("[ab]{6}", tokenizer.decode(state.output_token_ids[:-1]))


def test_rows_with_and_without_grammar_share_a_batch(
    compiler: GrammarCompiler, tokenizer: Tokenizer, table: Tensor, stop_ids: frozenset[int]
) -> None:
    one = tokenizer.encode("1").ids[-1]
    shaped = _sampling("regex", "1", stop_ids)
    for other in (Sampling(9), Sampling(9, temperature=1.0), Sampling(9, presence_penalty=1.0)):
        states = [
            SamplingState(other, ()),
            SamplingState(shaped, (), compiler.compile(shaped)),
        ]
        logits = table[:2, None]
        alone = choose_windows(logits[:1], [()], [SamplingState(other, ())])
        windows = choose_windows(logits, [(), ()], states)
        assert windows[:1] == alone
        assert [choice.token_id for choice in windows[1]] == [one]


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar("regex", "("), "regex: .*unclosed group"),
        (Grammar("regex", "(?=a)b"), "regex: .*look-around"),
        (Grammar("regex", "ab\\"), "regex: ends with a lone backslash"),
        (Grammar("json_schema", "{"), "json_schema: "),
        (Grammar("json_schema", '{"type": "objec"}'), "json_schema: Invalid type: objec"),
        (Grammar("json_schema", '{"not": {"type": "null"}}'), "json_schema: Unimplemented keys"),
        (
            Grammar("json_schema", '{"type": "string", "minLength": 5, "maxLength": 3}'),
            "json_schema: Unsatisfiable schema",
        ),
    ],
)
def test_a_grammar_that_cannot_be_compiled_says_why(
    compiler: GrammarCompiler, grammar: Grammar, message: str
) -> None:
    sampling = Sampling(9, stop_token_ids=frozenset({2}), grammar=grammar)
    with pytest.raises(GrammarError, match=message) as error:
        compiler.compile(sampling)
    assert "\n" not in str(error.value)


def test_a_request_without_a_grammar_needs_no_tokenizer_and_one_with_a_grammar_does(
    tmp_path: Path,
) -> None:
    compiler = GrammarCompiler(tmp_path / "tokenizer.json")
    assert compiler.compile(Sampling(9)) is None
    sampling = Sampling(9, stop_token_ids=frozenset({2}), grammar=Grammar("regex", "a"))
    with pytest.raises(GrammarError, match=r"the model has no tokenizer\.json"):
        compiler.compile(sampling)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(GrammarError, match="the model's tokenizer cannot be used"):
        compiler.compile(sampling)


def test_a_grammar_needs_a_stop_token(compiler: GrammarCompiler) -> None:
    with pytest.raises(GrammarError, match="leave ignore_eos out"):
        compiler.compile(Sampling(9, grammar=Grammar("regex", "a")))


def test_matchers_of_one_grammar_do_not_share_their_place(
    compiler: GrammarCompiler, tokenizer: Tokenizer, stop_ids: frozenset[int]
) -> None:
    sampling = _sampling("regex", "ab", stop_ids)
    first, second = compiler.compile(sampling), compiler.compile(sampling)
    assert first is not None
    assert second is not None
    before = second.allowed(tokenizer.get_vocab_size())
    first.accept(_id(tokenizer, "a"))
    assert torch.equal(second.allowed(tokenizer.get_vocab_size()), before)
    assert not torch.equal(first.allowed(tokenizer.get_vocab_size()), before)


def test_an_answer_whose_grammar_leads_nowhere_ends_and_the_others_go_on(
    compiler: GrammarCompiler, table: Tensor, stop_ids: frozenset[int]
) -> None:
    """A vocabulary of specials alone has no token that the grammar could go on with."""
    sampling = _sampling("regex", "a", stop_ids)
    states = [
        SamplingState(sampling, (), compiler.compile(sampling)),
        SamplingState(Sampling(9), ()),
    ]
    windows = choose_windows(table[:2, None, :3], [(), ()], states)
    assert [len(window) for window in windows] == [0, 1]
    assert states[0].ended is not None
    assert states[0].ended.reason == REASON_INVALID_ARGUMENT
    assert "no token of the model's vocabulary" in states[0].ended.detail
    assert states[1].ended is None


def test_a_token_from_elsewhere_that_breaks_the_grammar_ends_the_answer(
    compiler: GrammarCompiler, tokenizer: Tokenizer, stop_ids: frozenset[int]
) -> None:
    sampling = _sampling("regex", "ab", stop_ids)
    state = SamplingState(sampling, (), compiler.compile(sampling))
    state.append(_id(tokenizer, "b"))
    assert state.ended is not None
    assert state.ended.reason == REASON_INVALID_ARGUMENT
    assert state.ended.detail.startswith("grammar: ")
