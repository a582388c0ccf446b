"""Comparisons beside the table: one long prompt, and answers of mixed lengths."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.bench.engine.lineup import Lineup
from orchestrator.bench.measures import output_tokens_per_s, prefill_tokens_per_s
from orchestrator.bench.messages import Run
from orchestrator.bench.process import Contender
from orchestrator.bench.rounds import Outcome, Turn, compete, ratio

LONG_PROMPT_TOKENS = 512
LONG_PROMPTS = 5
MIXED_REQUESTS = 64
SHORTEST_ANSWER, LONGEST_ANSWER = 16, 256
STATIC_BATCHES = (8, 16, 32)
_STATIC_PEER = "transformers"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Tokens/s of ours beside those of peers; ratios are ours over theirs."""

    model: str
    tokens_per_s: dict[str, float | None]
    variants: dict[str, str]
    ratios: dict[str, float | None]
    reasons: dict[str, str]


def compare_prefill(
    here: Lineup, native: str, peers: Sequence[str], tokens: int, rounds: int
) -> Comparison:
    """Read prompts of `tokens` tokens, one after the other: of a turn the median counts, since the
    first one after a pause meets a processor that has slowed down."""

    def read(contender: Contender, prompt: list[int]) -> float:
        run = Run(prompts=[prompt], output_tokens=[1])
        return prefill_tokens_per_s(contender.run(run), tokens)

    def turn(contender: Contender, index: int) -> float:
        prompts = here.prompts.deal(f"long {index}", LONG_PROMPTS, tokens)
        return statistics.median(read(contender, prompt) for prompt in prompts)

    outcomes = here.compete([native, *peers], turn, float, rounds)
    return _comparison(here.title, native, peers, outcomes)


def mixed_lengths(requests: int, shortest: int, longest: int) -> list[int]:
    """Answer lengths, uniform between both ends, the same in every bench."""
    rng = random.Random(0)
    return [rng.randint(shortest, longest) for _ in range(requests)]


def compare_mixed(
    here: Lineup, native: str, isl: int, lengths: Sequence[int], rounds: int
) -> Comparison:
    """Answer requests of mixed lengths, transformers in the static batch that suits it best."""

    def turn(contender: Contender, static_batch: int | None) -> Turn[float]:
        def run(index: int) -> float:
            prompts = here.prompts.deal(f"mixed {index}", len(lengths), isl)
            asked = Run(prompts=prompts, output_tokens=list(lengths), static_batch=static_batch)
            return output_tokens_per_s(contender.run(asked))

        return run

    natives = here.contenders.get(native, {})
    others = here.contenders.get(_STATIC_PEER, {})
    turns: dict[str, dict[str, Turn[float]]] = {}
    if natives:
        turns[native] = {dtype: turn(one, None) for dtype, one in natives.items()}
    if others:
        turns[_STATIC_PEER] = {
            f"{dtype}, batches of {batch}": turn(one, batch)
            for dtype, one in others.items()
            for batch in STATIC_BATCHES
        }
    outcomes = compete(turns, float, rounds)
    for name in (native, _STATIC_PEER):
        outcomes.setdefault(name, Outcome(why=here.why_absent(name)))
    return _comparison(here.title, native, [_STATIC_PEER], outcomes)


def _comparison(
    model: str, native: str, peers: Sequence[str], outcomes: dict[str, Outcome[float]]
) -> Comparison:
    names = [native, *peers]
    return Comparison(
        model=model,
        tokens_per_s={name: outcomes[name].median_of(float) for name in names},
        variants={name: outcomes[name].variant for name in names},
        ratios={peer: ratio(outcomes[native], outcomes[peer], float) for peer in peers},
        reasons={name: why for name in names if (why := outcomes[name].why) is not None},
    )
