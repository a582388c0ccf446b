"""SPEED-Bench and speculative rollouts: formulas with the published inputs."""

from __future__ import annotations

from orchestrator.literature.check import Check, Section
from workers.perf.speculation import rollout_speedup_bound, speedup

# Table 10: milliseconds of a plain and of a speculative step, Llama 70B with EAGLE3, batch 16.
_STEPS = {"1k": (19.6, 25.9), "2k": (20.4, 27.5), "8k": (25.2, 34.1)}
_LENGTH = 2.44
_SPEEDUP = 1.90
# Generation and step, seconds, plain and speculative.
_ROLLOUTS = {
    "RL-Think": ((133.6, 185.3), (87.0, 137.4)),
    "RL-Zero": ((100.0, 151.2), (56.6, 107.5)),
}
_PROJECTED = ((2.72, 1.70), (4.07, 1.96))


def speed_bench() -> Section:
    """Projected speed-ups."""
    return Section(
        title="SPEED-Bench: projected speed-up",
        source="arXiv 2604.09557, tables 1 and 10",
        method=(
            "t_ar x AL / t_sd from table 10's step times (batch 16) with table 1's mean AL 2.44 of "
            "the same model and drafter, beside table 1's measured 1.90 (batch 32). Table 10's own "
            "columns of projected and actual speed-up were not at hand, so its agreement within "
            "0.02 could not be checked row by row."
        ),
        checks=(
            *(
                Check(
                    f"Llama 70B, EAGLE3, ISL {isl}: speed-up, x",
                    _SPEEDUP,
                    speedup(plain, _LENGTH, drafted),
                    0.06,
                )
                for isl, (plain, drafted) in _STEPS.items()
            ),
        ),
    )


def rollouts() -> Section:
    """What quicker generation does for a training step."""
    first, second = _PROJECTED
    # The share of generation that the first projection implies must give the second.
    share = (1.0 - 1.0 / first[1]) / (1.0 - 1.0 / first[0])
    return Section(
        title="Speculative rollouts: speed-up of a training step",
        source="arXiv 2604.26779, step times and projections",
        method=(
            "S_step = 1 / (R/alpha + 1 - R) with R the share of generation in a plain step and "
            "alpha how much quicker generation became."
        ),
        checks=(
            *(
                Check(
                    f"{name}: step, x",
                    plain[1] / drafted[1],
                    rollout_speedup_bound(plain[0] / plain[1], plain[0] / drafted[0]),
                    0.02,
                )
                for name, (plain, drafted) in _ROLLOUTS.items()
            ),
            Check(
                "235B, k = 7, from the share of generation that k = 3 implies, x",
                second[1],
                rollout_speedup_bound(share, second[0]),
                0.01,
            ),
        ),
    )
