"""Prefill and decode by batch and draft tokens: the table that the engine is judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.bench.engine.lineup import Lineup, Report
from orchestrator.bench.measures import (
    acceptance_length,
    acceptance_rates,
    decode_speed,
    pooled,
    prefill_tokens_per_s,
)
from orchestrator.bench.messages import Run, Speculation
from orchestrator.bench.process import Contender
from orchestrator.bench.rounds import Outcome, ratio


@dataclass(frozen=True, slots=True)
class Speed:
    """One turn: a run that reads prompts, then one that answers others."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    step_ms: float
    peak_bytes: int
    speculation: Speculation | None


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours over a peer's; above 1 we are faster."""

    prefill: float | None
    decode: float | None


@dataclass(frozen=True, slots=True)
class SpeedRow:
    """One contender in one case. Figures are medians over rounds, None with `why`."""

    model: str
    batch: int
    contender: str
    draft_tokens: int
    dtype: str | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    step_ms: float | None
    acceptance_length: float | None
    acceptance_rates: list[float] | None
    peak_bytes: int | None
    ratios: dict[str, Ratio] = field(default_factory=dict)
    why: str | None = None


@dataclass(frozen=True, slots=True)
class SpeedTable:
    """All cases of one model, rows for people and outcomes to form further ratios from."""

    rows: tuple[SpeedRow, ...]
    outcomes: dict[tuple[int, str], Outcome[Speed]]

    def decode_ratio(self, batch: int, ours: str, theirs: str) -> float | None:
        """Decode speed of one contender over another's, round by round."""
        if (batch, ours) not in self.outcomes or (batch, theirs) not in self.outcomes:
            return None
        return ratio(self.outcomes[batch, ours], self.outcomes[batch, theirs], _decode)

    def why(self, batch: int, contender: str) -> str | None:
        outcome = self.outcomes.get((batch, contender))
        return None if outcome is None else outcome.why


def measure_speeds(
    here: Lineup,
    natives: Sequence[tuple[str, int]],
    peers: Sequence[str],
    batches: Sequence[int],
    isl: int,
    osl: int,
    rounds: int,
    report: Report,
) -> SpeedTable:
    """Measure every batch size with every contender.

    Args:
        here: running contenders.
        natives: name and draft tokens of our own contenders.
        peers: names of the others.
        batches: requests at once.
        isl, osl: tokens of each prompt and of each answer.
        rounds: measured turns of each contender.
        report: told of each case.
    """
    rows: list[SpeedRow] = []
    outcomes: dict[tuple[int, str], Outcome[Speed]] = {}
    names = [name for name, _ in natives] + list(peers)
    for batch in batches:
        report(f"{here.title}: batch {batch}")
        case = here.compete(names, _turn(here, batch, isl, osl), _decode, rounds)
        outcomes |= {(batch, name): outcome for name, outcome in case.items()}
        for name, draft_tokens in natives:
            ratios = {
                peer: Ratio(
                    ratio(case[name], case[peer], _prefill), ratio(case[name], case[peer], _decode)
                )
                for peer in peers
            }
            rows.append(_row(here.title, batch, name, draft_tokens, case[name], ratios))
        rows += [_row(here.title, batch, peer, 0, case[peer], {}) for peer in peers]
    return SpeedTable(tuple(rows), outcomes)


def _turn(here: Lineup, batch: int, isl: int, osl: int) -> Callable[[Contender, int], Speed]:
    def turn(contender: Contender, index: int) -> Speed:
        read = here.prompts.deal(f"read {batch} {index}", batch, isl)
        answered = here.prompts.deal(f"answer {batch} {index}", batch, isl)
        prefill = contender.run(Run(prompts=read, output_tokens=[1] * batch))
        decode = contender.run(Run(prompts=answered, output_tokens=[osl] * batch))
        speed = decode_speed(decode)
        return Speed(
            prefill_tokens_per_s=prefill_tokens_per_s(prefill, batch * isl),
            decode_tokens_per_s=speed.tokens_per_s,
            step_ms=speed.step_ms,
            peak_bytes=max(prefill.peak_bytes, decode.peak_bytes),
            speculation=decode.speculation,
        )

    return turn


def _prefill(speed: Speed) -> float:
    return speed.prefill_tokens_per_s


def _decode(speed: Speed) -> float:
    return speed.decode_tokens_per_s


def _row(
    model: str,
    batch: int,
    contender: str,
    draft_tokens: int,
    outcome: Outcome[Speed],
    ratios: dict[str, Ratio],
) -> SpeedRow:
    speculation = pooled(speed.speculation for speed in outcome.samples) if draft_tokens else None
    return SpeedRow(
        model=model,
        batch=batch,
        contender=contender,
        draft_tokens=draft_tokens,
        dtype=outcome.variant or None,
        prefill_tokens_per_s=outcome.median_of(_prefill),
        decode_tokens_per_s=outcome.median_of(_decode),
        step_ms=outcome.median_of(lambda speed: speed.step_ms),
        acceptance_length=acceptance_length(speculation) if speculation else None,
        acceptance_rates=acceptance_rates(speculation) if speculation else None,
        peak_bytes=max((speed.peak_bytes for speed in outcome.samples), default=None),
        ratios=ratios,
        why=outcome.why,
    )
