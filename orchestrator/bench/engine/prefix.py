"""What a cached prefix saves: time to first token of a long prompt, new and mostly cached."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.bench.engine.lineup import Lineup
from orchestrator.bench.measures import NothingMeasured, first_token_ms
from orchestrator.bench.messages import Run
from orchestrator.bench.process import Contender

PREFIX_TOKENS = 1800
PROMPT_TOKENS = 2000
# A request that ends with its first token does not tell how much of its prompt was cached.
_ANSWER_TOKENS = 2


@dataclass(frozen=True, slots=True)
class PrefixTurn:
    """TTFT of a prompt that is new, and of one whose start is cached."""

    cold_ms: float
    warm_ms: float
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class PrefixResult:
    """Medians over rounds; `speedup` is the median of each round's ratio."""

    dtype: str | None
    cold_ttft_ms: float | None
    warm_ttft_ms: float | None
    cached_tokens: int | None
    speedup: float | None
    why: str | None


def measure_prefix(
    here: Lineup, native: str, prefix_tokens: int, prompt_tokens: int, rounds: int
) -> PrefixResult:
    """TTFT with and without a cached prefix; an earlier request read exactly that prefix."""

    def turn(contender: Contender, index: int) -> PrefixTurn:
        cold, warm = here.prompts.deal(f"prefix {index}", 2, prompt_tokens)
        without = contender.run(Run(prompts=[cold], output_tokens=[_ANSWER_TOKENS]))
        contender.run(Run(prompts=[warm[:prefix_tokens]], output_tokens=[_ANSWER_TOKENS]))
        hit = contender.run(Run(prompts=[warm], output_tokens=[_ANSWER_TOKENS]))
        if not hit.cached_tokens[0]:
            raise NothingMeasured("the prefix was not found in the cache")
        return PrefixTurn(first_token_ms(without), first_token_ms(hit), hit.cached_tokens[0])

    outcome = here.compete([native], turn, lambda sample: -sample.cold_ms, rounds)[native]
    return PrefixResult(
        dtype=outcome.variant or None,
        cold_ttft_ms=outcome.median_of(lambda sample: sample.cold_ms),
        warm_ttft_ms=outcome.median_of(lambda sample: sample.warm_ms),
        cached_tokens=min((sample.cached_tokens for sample in outcome.samples), default=None),
        speedup=outcome.median_of(lambda sample: sample.cold_ms / sample.warm_ms),
        why=outcome.why,
    )
