"""Structured output: which tokens keep an answer inside a JSON schema or a regular expression.

llguidance does the parsing. Where an answer may end is decided here: the request's own stop tokens
are allowed exactly where the grammar is satisfied, and nowhere else, so that the text in front of
one is always whole. llguidance therefore gets an end token of its own behind the vocabulary, which
is never shown to a model.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer
from torch import Tensor

from workers.engine.commands import Grammar, Sampling

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_END = "<|end of the grammar|>"
# A model that has nothing to say writes blanks for ever where a schema lets it.
_JSON_OPTIONS: JsonCompileOptions = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}"}
_KEPT_GRAMMARS = 64
_SHOWN_CHARACTERS = 300


class GrammarError(ValueError):
    """A grammar that cannot be compiled or followed; the message is for the client."""


class GrammarMatcher:
    """Where one answer stands in its grammar."""

    def __init__(
        self, matcher: LLMatcher, end_token_id: int, stop_token_ids: AbstractSet[int]
    ) -> None:
        self._matcher = matcher
        self._end_token_id = end_token_id
        self._stop_token_ids = sorted(stop_token_ids)

    def allowed(self, vocab_size: int) -> Tensor:
        """bool [vocab_size] on the CPU: the tokens that may come next, at least one.

        Raises GrammarError when no token of the vocabulary goes on, or a limit is exceeded.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        known = min(vocab_size, self._end_token_id)
        mask = np.zeros(vocab_size, dtype=np.uint8)
        mask[:known] = np.unpackbits(bits, count=known, bitorder="little")
        stops = [token_id for token_id in self._stop_token_ids if token_id < vocab_size]
        mask[stops] = self._matcher.is_accepting()
        if not mask.any():
            raise GrammarError("grammar: no token of the model's vocabulary can go on from here")
        return torch.from_numpy(mask).bool()

    def accept(self, token_id: int) -> None:
        """Take a token of the answer that is no stop token; raises GrammarError if it is wrong."""
        if token_id >= self._end_token_id:
            raise GrammarError(f"grammar: token {token_id} has no text")
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"grammar: {_first_lines(self._matcher.get_error())}")


class GrammarCompiler:
    """Makes matchers for one tokenizer and keeps what was compiled of late."""

    def __init__(self, tokenizer_file: Path) -> None:
        """The tokenizer is read with the first grammar, which takes about a second for 100,000
        tokens. A checkpoint without one refuses grammars; it serves everything else."""
        self._tokenizer_file = tokenizer_file
        self._tokenizer: LLTokenizer | None = None
        self._fresh: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    def compile(self, sampling: Sampling) -> GrammarMatcher | None:
        """A matcher at the beginning of an answer; None for a request without a grammar.

        Raises GrammarError, with a message that says what is wrong with the grammar.
        """
        grammar = sampling.grammar
        if grammar is None:
            return None
        if not sampling.stop_token_ids:
            raise GrammarError(
                "grammar: an answer ends with a stop token; leave ignore_eos out, or name "
                "stop_token_ids"
            )
        tokenizer = self._load()
        fresh = self._fresh.pop(grammar, None) or _compile(grammar, tokenizer)
        self._fresh[grammar] = fresh
        if len(self._fresh) > _KEPT_GRAMMARS:
            self._fresh.popitem(last=False)
        return GrammarMatcher(fresh.deep_copy(), tokenizer.eos_token, sampling.stop_token_ids)

    def _load(self) -> LLTokenizer:
        if self._tokenizer is not None:
            return self._tokenizer
        if not self._tokenizer_file.exists():
            raise GrammarError(
                f"grammar: the model has no {self._tokenizer_file.name}, so its tokens have no "
                "known text; leave the grammar out"
            )
        try:
            tokenizer = Tokenizer.from_file(str(self._tokenizer_file))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            tokenizer.add_special_tokens([_END])
            end = tokenizer.token_to_id(_END)
            self._tokenizer = LLTokenizer(tokenizer.to_str(), eos_token=end)
        except Exception as error:  # tokenizers raises plain Exception
            raise GrammarError(f"grammar: the model's tokenizer cannot be used: {error}") from error
        return self._tokenizer


def _compile(grammar: Grammar, tokenizer: LLTokenizer) -> LLMatcher:
    match grammar.kind:
        case "json_schema":
            source = _from_schema(grammar.text)
        case "json_object":
            source = _from_schema('{"type": "object"}')
        case "regex":
            source = _from_regex(grammar.text)
    limits = LLParserLimits(verbose_errors=False)
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=limits)
    if matcher.is_error():
        problem = matcher.get_error()
        if grammar.kind == "regex":
            # Around its own words stands the grammar that llguidance has made of the expression.
            own = re.split("^error: ", problem, maxsplit=1, flags=re.MULTILINE)[-1]
            first, _, _ = own.partition("\n")
            problem = f"{grammar.text!r}: {first}"
        raise GrammarError(
            f"{grammar.kind}: {_first_lines(problem)}; correct it, or leave that part out"
        )
    return matcher


def _from_schema(text: str) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS)
    except ValueError as error:
        raise GrammarError(f"json_schema: {error}; send a JSON schema") from error


def _from_regex(pattern: str) -> str:
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        # llguidance drops it without a word.
        raise GrammarError("regex: ends with a lone backslash; escape it with another one")
    return LLMatcher.grammar_from_regex(pattern)


def _first_lines(message: str) -> str:
    """An error of llguidance in one line, without the state that it may list behind it."""
    told = " ".join(message.partition("<state>")[0].split())
    return told if len(told) <= _SHOWN_CHARACTERS else told[:_SHOWN_CHARACTERS] + "..."
