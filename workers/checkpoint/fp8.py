"""FP8 weights back to numbers.

Exists next to `nvfp4` as the other quantised form of published releases: E4M3 values with one
float32 scale for the whole matrix, value = e4m3 * weight_scale.
"""

from __future__ import annotations

from torch import Tensor


def dequantise(values: Tensor, scale: Tensor) -> Tensor:
    """The matrix that FP8 tensors stand for, in float32.

    Args:
        values: float8_e4m3fn [out, in].
        scale: float32, one element.
    """
    return values.float().mul_(scale.reshape(()))
