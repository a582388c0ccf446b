"""How much of a machine's peaks the software reaches, by kind of operation.

Three origins: `IDEAL` for studies that assume peaks, `ASSUMED` where nothing was measured, and
what `tandem calibrate` fitted, which alone has an error estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["projections", "attention", "experts", "recurrence", "head"]
KINDS: tuple[Kind, ...] = ("projections", "attention", "experts", "recurrence", "head")


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of peaks, in (0, 1] for measured peaks, and times that no peak explains.

    Attributes:
        compute, memory: by kind of operation, the share of FLOP/s and of memory bandwidth.
        link: share of link bandwidth.
        operation_s: least time of one operation of a layer, however small; `operations_s` of the
            kinds for which it was measured apart.
        step_s: constant time of a forward pass.
        sequence_s: additional time for each sequence that decodes in it.
        prompt_s: additional time for each prompt that is read in it.
        draft_s: additional time for each draft pass.
        error: relative error of predictions, found by leaving measurements out; None unmeasured.
    """

    name: str
    compute: Mapping[Kind, float]
    memory: Mapping[Kind, float]
    link: float = 1.0
    operation_s: float = 0.0
    step_s: float = 0.0
    sequence_s: float = 0.0
    prompt_s: float = 0.0
    draft_s: float = 0.0
    error: float | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    operations_s: Mapping[Kind, float] = field(default_factory=dict)

    def least_s(self, kind: Kind) -> float:
        """Least time of one operation of a kind."""
        return self.operations_s.get(kind, self.operation_s)


IDEAL = Efficiency("ideal", dict.fromkeys(KINDS, 1.0), dict.fromkeys(KINDS, 1.0))

# FlashAttention-3 reaches 75 % of an H100 (arXiv 2407.08608), dense matrix products somewhat more
# than grouped ones; copies reach 80 to 90 % of memory bandwidth and large transfers 80 % of a link.
# A kernel inside a CUDA graph takes about 2 microseconds however little it does.
ASSUMED = Efficiency(
    "assumed",
    {
        "projections": 0.75,
        "attention": 0.65,
        "experts": 0.6,
        "recurrence": 0.4,
        "head": 0.75,
    },
    dict.fromkeys(KINDS, 0.8),
    link=0.8,
    operation_s=2e-6,
)
