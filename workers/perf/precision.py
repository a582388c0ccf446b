"""How many bytes each kind of number takes, and in which arithmetic it is multiplied.

Quantised checkpoints do not treat all tensors alike, and hybrid models least of all, so weights
have a format for each kind of layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from workers.perf.errors import PerfError

Math = Literal["fp4", "fp8", "bf16", "fp32"]


@dataclass(frozen=True, slots=True)
class Format:
    """Bytes of one weight with its share of the scales, and the arithmetic it runs in."""

    bytes: float
    math: Math


FP4 = Format(0.5, "fp4")
NVFP4 = Format(0.5 + 1 / 16, "fp4")  # one E4M3 scale for 16 weights (the published checkpoint)
MXFP4 = Format(0.5 + 1 / 32, "fp4")  # one E8M0 scale for 32 weights (OCP MX 1.0)
FP8 = Format(1.0, "fp8")
# 28 of 40 input and 29 of 40 output projections in FP8, the others in BF16, by their sizes.
MOSTLY_FP8 = Format(1.293, "fp8")
BF16 = Format(2.0, "bf16")
FP32 = Format(4.0, "fp32")


@dataclass(frozen=True, slots=True)
class Precision:
    """Formats by kind of layer; `dense` are shared experts and MLPs.

    `draft` is that of all weights of an MTP block, None for the same as elsewhere.
    `dispatch_bytes` is an element on its way to an expert, `activation_bytes` any other element
    that ranks exchange.
    """

    name: str
    attention: Format
    recurrence: Format
    dense: Format
    experts: Format
    embedding: Format
    attention_math: Math
    kv_bytes: float
    state_bytes: float = 4.0
    dispatch_bytes: float = 2.0
    activation_bytes: float = 2.0
    draft: Format | None = None

    @property
    def of_draft(self) -> Precision:
        """The precision of an MTP block."""
        kept = self.draft
        if kept is None:
            return self
        return replace(self, attention=kept, recurrence=kept, dense=kept, experts=kept)


def _uniform(name: str, weights: Format, kv_bytes: float) -> Precision:
    return Precision(name, weights, weights, weights, weights, weights, weights.math, kv_bytes)


PRECISIONS: dict[str, Precision] = {
    precision.name: precision
    for precision in (
        # Weights, KV and arithmetic in FP4, as the studies of Helix and Beyond the Buzz assume.
        replace(_uniform("fp4", FP4, 0.5), dispatch_bytes=0.5),
        # As Nemotron 3 Super is published: experts in NVFP4, most of Mamba in FP8, the rest of it,
        # attention, embeddings and MTP in BF16.
        Precision(
            "nvfp4",
            BF16,
            MOSTLY_FP8,
            FP8,
            NVFP4,
            BF16,
            "fp8",
            1.0,
            dispatch_bytes=0.5625,
            draft=BF16,
        ),
        # NVFP4 for every matrix but the embeddings, as dense models are quantised.
        Precision("nvfp4-all", NVFP4, NVFP4, NVFP4, NVFP4, BF16, "fp8", 1.0, dispatch_bytes=0.5625),
        # As GPT-OSS is published: experts in MXFP4 with MXFP8 activations, the rest in BF16.
        Precision("mxfp4", BF16, BF16, BF16, MXFP4, BF16, "bf16", 1.0, dispatch_bytes=1.0),
        Precision("fp8", FP8, FP8, FP8, FP8, BF16, "fp8", 1.0, dispatch_bytes=1.0),
        _uniform("bf16", BF16, 2.0),
        replace(_uniform("fp32", FP32, 4.0), dispatch_bytes=4.0, activation_bytes=4.0),
    )
}


def precision_named(name: str) -> Precision:
    """A precision by its name. Raises PerfError."""
    if name not in PRECISIONS:
        raise PerfError(f"precision {name!r}: unknown; choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
