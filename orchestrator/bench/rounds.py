"""Fair turns: contenders alternate round by round, and are compared round by round.

Machines drift: what else runs, temperature, other tenants. So each round runs every contender once,
a ratio is formed within a round, and the median over rounds is what counts. A contender may come in
several variants (data types, batch sizes); the first turn picks its fastest, for each case anew.
Pure but for the turns it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from typing import Generic, TypeVar

from orchestrator.bench.measures import NothingMeasured
from orchestrator.bench.process import ContenderFailed

Sample = TypeVar("Sample")
Turn = Callable[[int], Sample]  # takes the round; 0 is the one that picks variants

PICKING_ROUND = 0


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Sample]):
    """What one contender did: one sample for each round, or why there is none."""

    variant: str = ""
    samples: tuple[Sample, ...] = ()
    why: str | None = None

    def median_of(self, figure: Callable[[Sample], float]) -> float | None:
        """The median over rounds; None without samples."""
        return median(map(figure, self.samples)) if self.samples else None


def compete(
    contenders: Mapping[str, Mapping[str, Turn[Sample]]],
    score: Callable[[Sample], float],
    rounds: int,
) -> dict[str, Outcome[Sample]]:
    """Let contenders take turns.

    Args:
        contenders: by name, the turns of each variant.
        score: of a sample; the variant with the highest is kept.
        rounds: measured rounds, each with one turn for every contender, in order.

    Returns:
        For each contender its samples; one that fails once is out, with the reason.
    """
    chosen: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name, variants in contenders.items():
        scores: dict[str, float] = {}
        for variant, turn in variants.items():
            try:
                scores[variant] = score(turn(PICKING_ROUND))
            except (ContenderFailed, NothingMeasured) as error:
                failed[name] = str(error)
        if scores:
            chosen[name] = max(scores, key=scores.__getitem__)
            failed.pop(name, None)
    samples: dict[str, list[Sample]] = {name: [] for name in chosen}
    for index in range(1, rounds + 1):
        for name, variant in chosen.items():
            if name in failed:
                continue
            try:
                samples[name].append(contenders[name][variant](index))
            except (ContenderFailed, NothingMeasured) as error:
                failed[name] = str(error)
    return {
        name: Outcome(why=failed[name])
        if name in failed
        else Outcome(chosen[name], tuple(samples[name]))
        for name in contenders
    }


def ratio(
    ours: Outcome[Sample], theirs: Outcome[Sample], figure: Callable[[Sample], float]
) -> float | None:
    """Median over rounds of our figure over theirs; None when one of them has no samples."""
    if not ours.samples or not theirs.samples:
        return None
    return ratio_of_rounds(
        [figure(sample) for sample in ours.samples], [figure(sample) for sample in theirs.samples]
    )


def ratio_of_rounds(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios within each round."""
    return median(our / their for our, their in zip(ours, theirs, strict=True))


def median_interval(
    values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Between which two of the values the true median lies with at least this confidence.

    By order statistics (the sign test turned around), which assume no distribution, only rounds
    that do not depend on each other. None for too few values to be so confident.
    """
    ordered, count = sorted(values), len(values)
    found = None
    outside = 0.0  # that the true median is below the lowest `rank` values, or above the highest
    for rank in range((count + 1) // 2):
        outside += 2 * comb(count, rank) / 2**count
        if outside > 1 - confidence:
            break
        found = ordered[rank], ordered[count - 1 - rank]
    return found
