"""From what a contender did, step by step, to the figures that are compared. Pure.

Definitions, the same for every engine:
- prefill: prompt tokens over the time until the last request of the batch has its first token,
  in a run that makes no other tokens;
- decode: only steps in which all requests of the batch decode, that is after the last of them got
  its first token and until the first of them ends;
- acceptance length: papers, SPEED-Bench, AL = 1 + sum_i prod_{j<=i} AR_j with AR_i the share of
  drafts at position i that were accepted where all before them were.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from orchestrator.bench.messages import Speculation, Timeline


class NothingMeasured(ValueError):
    """A run was too short for what it should tell."""


@dataclass(frozen=True, slots=True)
class DecodeSpeed:
    """Of the steps in which a whole batch decodes."""

    tokens_per_s: float
    step_ms: float


def prefill_tokens_per_s(timeline: Timeline, prompt_tokens: int) -> float:
    """Prompt tokens of a whole batch over the time to its last first token."""
    return prompt_tokens / timeline.elapsed_s[_all_started(timeline)]


def decode_speed(timeline: Timeline) -> DecodeSpeed:
    """How quickly a whole batch decodes.

    Raises:
        NothingMeasured: no step began after all requests had started and before any ended.
    """
    first = _all_started(timeline)
    totals = [sum(column) for column in zip(*timeline.tokens, strict=True)]
    made = [list(accumulate(column)) for column in zip(*timeline.tokens, strict=True)]
    last = min(done.index(total) for done, total in zip(made, totals, strict=True))
    if last <= first:
        raise NothingMeasured("answers are too short: no step has the whole batch decoding")
    seconds = timeline.elapsed_s[last] - timeline.elapsed_s[first]
    tokens = sum(sum(step) for step in timeline.tokens[first + 1 : last + 1])
    return DecodeSpeed(tokens / seconds, seconds / (last - first) * 1000.0)


def first_token_ms(timeline: Timeline) -> float:
    """TTFT of a run with one request."""
    return timeline.elapsed_s[_all_started(timeline)] * 1000.0


def output_tokens_per_s(timeline: Timeline) -> float:
    """All tokens of a run over all of its time."""
    return sum(sum(step) for step in timeline.tokens) / timeline.elapsed_s[-1]


def pooled(speculations: Iterable[Speculation | None]) -> Speculation | None:
    """The counts of several runs together; None when none of them decoded."""
    given = [speculation for speculation in speculations if speculation is not None]
    if not given:
        return None
    positions = max(len(one.drafted) for one in given)
    return Speculation(
        steps=sum(one.steps for one in given),
        drafted=[sum(_at(one.drafted, position) for one in given) for position in range(positions)],
        accepted=[
            sum(_at(one.accepted, position) for one in given) for position in range(positions)
        ],
    )


def acceptance_rates(speculation: Speculation) -> list[float]:
    """AR by draft position; 0 where no draft got."""
    pairs = zip(speculation.accepted, speculation.drafted, strict=True)
    return [accepted / drafted if drafted else 0.0 for accepted, drafted in pairs]


def acceptance_length(speculation: Speculation) -> float:
    """AL, the free token included; 1 without drafts."""
    return 1.0 + sum(accumulate(acceptance_rates(speculation), lambda joint, rate: joint * rate))


def _all_started(timeline: Timeline) -> int:
    """Index of the step after which every request has a token."""
    started: set[int] = set()
    for index, step in enumerate(timeline.tokens):
        started.update(row for row, tokens in enumerate(step) if tokens)
        if len(started) == len(step):
            return index
    raise NothingMeasured("a request got no token")


def _at(counts: list[int], position: int) -> int:
    return counts[position] if position < len(counts) else 0
