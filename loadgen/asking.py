"""The prompts of conversations: what a turn sends, with the answers before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from loadgen.clients.client import Message
from loadgen.prompts.source import PromptSource
from loadgen.prompts.tokens import TextTokens
from loadgen.recording import Record
from loadgen.sessions import Session, Turn


@dataclass(frozen=True, slots=True)
class Asking:
    """What is the same in all requests.

    Attributes:
        source: what prompts are cut from; None when all turns have their text.
        prompts: "tokens" sends token ids, "messages" a chat of text with as many tokens.
        tokenizer: needed for messages, and to carry answers that come as text into later turns.
        most_tokens: of prompt and answer together; longer prompts lose their end.
    """

    source: PromptSource | None
    prompts: Literal["tokens", "messages"] = "tokens"
    tokenizer: TextTokens | None = None
    temperature: float = 0.0
    ignore_eos: bool = True
    class_name: str = ""
    most_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as it will be sent: token ids or messages, and its tokens; 0 when not counted."""

    token_ids: Sequence[int]
    messages: Sequence[Message]
    tokens: int


_NOTHING = Prompt((), (), 0)


class Prompts:
    """Makes the prompts of a run."""

    def __init__(self, asking: Asking) -> None:
        self.asking = asking
        self.truncated = 0  # prompts that had to be shortened
        self.inexact = 0  # texts with some tokens more or less than wanted

    def first(self, session: Session) -> Prompt:
        """What a conversation begins with."""
        return self._make(session, 0, _NOTHING)

    def following(self, session: Session, place: int, before: Prompt, record: Record) -> Prompt:
        """The next turn: all that was said, the last answer, and the new question."""
        return self._make(session, place, self._answered(before, record))

    def _answered(self, prompt: Prompt, record: Record) -> Prompt:
        text = "".join(record.answer_text)
        answer = record.answer_ids
        if not answer and self.asking.tokenizer is not None:
            answer = self.asking.tokenizer.encode(text)
        tokens = prompt.tokens + len(answer)
        if self.asking.prompts == "tokens":
            return Prompt([*prompt.token_ids, *answer], (), tokens)
        return Prompt((), (*prompt.messages, Message("assistant", text)), tokens)

    def _make(self, session: Session, place: int, said: Prompt) -> Prompt:
        turn, chat = session.turns[place], self.asking.prompts == "messages"
        if turn.text and chat:
            # Without a tokenizer only the endpoint knows how many tokens that is.
            counts = self.asking.tokenizer
            tokens = 0 if counts is None else said.tokens + len(counts.encode(turn.text))
            return Prompt((), (*said.messages, Message("user", turn.text)), tokens)
        new = self._fitting(self._tokens(turn, session.number, place), turn, said)
        if not chat:
            return Prompt([*said.token_ids, *new], (), said.tokens + len(new))
        assert self.asking.tokenizer is not None
        text, count = self.asking.tokenizer.text_of(new)
        self.inexact += count != len(new)
        return Prompt((), (*said.messages, Message("user", text)), said.tokens + count)

    def _tokens(self, turn: Turn, number: int, place: int) -> list[int]:
        """The new part of a turn."""
        source, tokenizer = self.asking.source, self.asking.tokenizer
        if turn.text and tokenizer is not None:
            return tokenizer.encode(turn.text)
        if source is None:
            raise ValueError("a turn without text needs something to cut prompts from")
        if turn.hash_ids:
            return source.of_blocks(turn.hash_ids, number, turn.new_tokens)
        return source.fresh(number, turn.new_tokens, place)

    def _fitting(self, new: list[int], turn: Turn, said: Prompt) -> list[int]:
        if self.asking.most_tokens is None:
            return new
        room = self.asking.most_tokens - turn.answer_tokens - said.tokens
        if len(new) <= room:
            return new
        self.truncated += 1
        return new[: max(1, room)]
