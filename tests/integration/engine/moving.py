"""Requests that move from one engine to another while they decode, driven in the test's thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from protos.tandem.v1.common_pb2 import REASON_MIGRATED
from tests.integration.engine.engines import MAX_STEPS, item
from workers.engine.chosen import Chosen
from workers.engine.commands import Command, Migrate, Prefill, Reserve, Sampling
from workers.engine.events import Credits, Ended, Stayed, StepEvents


class Engine(Protocol):
    """What all engines offer."""

    @property
    def credits(self) -> Credits: ...
    def handle(self, command: Command) -> None: ...
    def step(self) -> StepEvents: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Move:
    """When a request is to move: after so many tokens; and how many more it may make meanwhile."""

    after_tokens: int
    growth_tokens: int


@dataclass
class Moved:
    """What a client saw of requests, and how each ended where. Keys are those of the requests."""

    tokens: dict[int, list[Chosen]] = field(default_factory=dict)
    left: dict[int, Ended] = field(default_factory=dict)
    stayed: dict[int, Stayed] = field(default_factory=dict)
    ended: dict[int, Ended] = field(default_factory=dict)
    from_target: dict[int, int] = field(default_factory=dict)  # tokens made there

    def token_ids(self, key: int) -> list[int]:
        return [choice.token_id for choice in self.tokens[key]]


def run_moving(
    source: Engine,
    target: Engine,
    prompts: Sequence[list[int]],
    samplings: Sequence[Sampling],
    moves: Mapping[int, Move],
) -> Moved:
    """All prompts at once on the source; those in `moves` go on at the target, if they can."""
    seen = Moved(tokens={key: [] for key in range(len(prompts))})
    for key, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        source.handle(Prefill(item(key, prompt, sampling), tuple(prompt), None))
    asked: set[int] = set()
    # Tokens of the target may be here before the source's last ones: they wait.
    early: dict[int, list[Chosen]] = {}
    for _ in range(MAX_STEPS):
        events = source.step()
        _take_tokens(seen, events)
        for ended in events.ended:
            if ended.reason == REASON_MIGRATED:
                seen.left[ended.key] = ended
                seen.tokens[ended.key] += early.pop(ended.key, [])
            else:
                seen.ended[ended.key] = ended
        for stayed in events.stayed:
            seen.stayed[stayed.key] = stayed
        for key, move in moves.items():
            made = seen.tokens[key]
            if key not in asked and key not in seen.ended and len(made) >= move.after_tokens:
                asked.add(key)
                work = replace(item(key, prompts[key], samplings[key]), generated_tokens=len(made))
                tokens = (*prompts[key], *seen.token_ids(key))
                growth = min(move.growth_tokens, samplings[key].max_tokens - len(made) - 1)
                target.handle(Reserve(work, tokens, max(growth, 0)))
        events = target.step()
        for reserved in events.reserved:
            source.handle(Migrate(reserved.key, reserved.ticket))
        for row in events.tokens:
            seen.from_target[row.key] = seen.from_target.get(row.key, 0) + len(row.chosen)
            if row.key not in seen.left:
                early.setdefault(row.key, []).extend(row.chosen)
                continue
            assert row.first_index == len(seen.tokens[row.key])
            seen.tokens[row.key] += row.chosen
        for ended in events.ended:
            if ended.key in asked and ended.key not in seen.stayed:
                seen.ended.setdefault(ended.key, ended)
        if len(seen.ended) == len(prompts) and seen.ended.keys() >= asked:
            return seen
    raise AssertionError(f"not ended: {set(range(len(prompts))) - seen.ended.keys()}")


def _take_tokens(seen: Moved, events: StepEvents) -> None:
    for row in events.tokens:
        assert row.first_index == len(seen.tokens[row.key]), "tokens in order, none twice"
        seen.tokens[row.key] += row.chosen
