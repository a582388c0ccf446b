"""What is going to be asked: conversations of one or more turns, with their moments.

A request of a trace is a conversation of one turn. Pure; made before anything is sent.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from loadgen.traces.request import TraceRequest


@dataclass(frozen=True, slots=True)
class Turn:
    """One question.

    Attributes:
        new_tokens: of its prompt, what comes after the conversation so far.
        not_before_s: when a trace has it; it is sent then or after the answer before, whichever
            is later.
        wait_s: between the answer before and this question.
    """

    new_tokens: int
    answer_tokens: int
    hash_ids: Sequence[int] = ()
    class_name: str = ""
    text: str = ""
    not_before_s: float = 0.0
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Session:
    """One conversation; `number` tells its prompts from all others."""

    number: int
    at_s: float
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of prompts or answers: all between two bounds are equally likely."""

    low: int
    high: int

    def draw(self, rng: random.Random) -> int:
        return self.low if self.low == self.high else rng.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Conversation:
    """How made-up conversations are: `isl` are the new tokens of a turn."""

    isl: Lengths
    osl: Lengths
    turns: int = 1
    think_s: float = 0.0
    class_name: str = ""


def of_trace(requests: Iterable[TraceRequest]) -> list[Session]:
    """Requests of the same session become turns of one conversation, all else stands alone."""
    groups: dict[str, list[TraceRequest]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(request.session or f"\0{place}", []).append(request)
    sessions = [
        Session(number, turns[0].at_s, _turns(turns))
        for number, turns in enumerate(groups.values())
    ]
    return sorted(sessions, key=lambda session: session.at_s)


def _turns(requests: Sequence[TraceRequest]) -> tuple[Turn, ...]:
    turns, said = [], 0
    for request in requests:
        # A prompt that is shorter than what was said before it is counted without that.
        new = request.prompt_tokens - said
        if new <= 0:
            new = request.prompt_tokens
        turns.append(
            Turn(
                new,
                request.answer_tokens,
                request.hash_ids if not said else (),
                request.class_name,
                request.text,
                not_before_s=request.at_s,
            )
        )
        said += new + request.answer_tokens
    return tuple(turns)


def made_up(conversation: Conversation, times_s: Iterable[float], seed: int) -> Iterator[Session]:
    """A conversation for each moment."""
    rng = random.Random(f"{seed}/lengths")
    for number, at_s in enumerate(times_s):
        turns = tuple(
            Turn(
                conversation.isl.draw(rng),
                conversation.osl.draw(rng),
                class_name=conversation.class_name,
                wait_s=conversation.think_s if place else 0.0,
            )
            for place in range(conversation.turns)
        )
        yield Session(number, at_s, turns)


def at_once(session: Session, now_s: float, think_s: float) -> Session:
    """A conversation as a user of a closed loop has it: from now on, and a trace's moments of later
    turns do not count."""
    first, *later = session.turns
    waiting = (replace(turn, not_before_s=0.0, wait_s=turn.wait_s or think_s) for turn in later)
    return Session(session.number, now_s, (first, *waiting))
