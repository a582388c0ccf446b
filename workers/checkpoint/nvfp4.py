"""NVFP4 weights back to numbers.

Exists to pin the format down in one place. A value is E2M1 (sign, two exponent bits, one mantissa
bit: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives); two lie in a byte, the even column in the low
nibble. Every 16 neighbouring columns share an E4M3 scale, and the whole matrix a float32 one:
value = e2m1 * weight_scale * weight_scale_2 (arXiv 2604.12374; the layout is that of
NVIDIA ModelOpt's unified Hugging Face export).
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_COLUMNS = 16  # input columns that share one block scale
COLUMNS_PER_BYTE = 2

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_VALUES = _MAGNITUDES + tuple(-value for value in _MAGNITUDES)  # by code 0..15

_PAIRS = torch.tensor(
    [[E2M1_VALUES[byte & 0xF], E2M1_VALUES[byte >> 4]] for byte in range(256)],
    dtype=torch.float32,
)


def dequantise(packed: Tensor, block_scale: Tensor, global_scale: Tensor) -> Tensor:
    """The matrix that NVFP4 tensors stand for, in float32.

    E2M1 times E4M3 is exact in float32, so each value is rounded once, by the global scale.

    Args:
        packed: uint8 [out, in / 2].
        block_scale: float8_e4m3fn [out, in / 16].
        global_scale: float32, one element.

    Returns:
        float32 [out, in].
    """
    rows, blocks = block_scale.shape
    values = _PAIRS.to(packed.device).index_select(0, packed.reshape(-1).int())
    values = values.view(rows, blocks, BLOCK_COLUMNS)
    values *= block_scale.float().unsqueeze(-1)
    values *= global_scale.reshape(())
    return values.view(rows, blocks * BLOCK_COLUMNS)
