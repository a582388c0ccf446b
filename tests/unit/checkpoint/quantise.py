"""Quantises matrices the way releases are quantised, so that tests can write checkpoints.

Rounding is to the nearest value; the scale of a block is its largest magnitude over 6, that of a
matrix puts the largest block scale at the end of E4M3's range.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

E4M3_MAX = 448.0
E2M1_MAX = 6.0
_MAGNITUDES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


@dataclass(frozen=True, slots=True)
class Nvfp4:
    packed: Tensor
    scale: Tensor
    global_scale: Tensor

    def reference(self) -> Tensor:
        """The values in float32, from the fields of each code."""
        codes = torch.stack([self.packed & 0xF, self.packed >> 4], dim=-1).flatten(1).double()
        sign = 1 - 2 * (codes // 8)
        exponent, mantissa = codes % 8 // 2, codes % 2
        normal = (1 + mantissa / 2) * 2 ** (exponent - 1)
        value = sign * torch.where(exponent == 0, mantissa / 2, normal)
        blocks = self.scale.double().repeat_interleave(16, dim=1)
        return (value * blocks * self.global_scale.double()).float()


@dataclass(frozen=True, slots=True)
class Fp8:
    values: Tensor
    scale: Tensor

    def reference(self) -> Tensor:
        """The values in float32."""
        return self.values.float() * self.scale


def to_nvfp4(matrix: Tensor) -> Nvfp4:
    """Quantise float [out, in], in a multiple of 16."""
    rows, columns = matrix.shape
    blocks = matrix.float().view(rows, columns // 16, 16)
    largest = blocks.abs().amax(-1)
    global_scale = (largest.max() / (E2M1_MAX * E4M3_MAX)).clamp_min(1e-30)
    scale = (largest / E2M1_MAX / global_scale).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
    steps = scale.float() * global_scale
    scaled = blocks / steps.clamp_min(1e-38).unsqueeze(-1)
    codes = (scaled.abs().unsqueeze(-1) - _MAGNITUDES).abs().argmin(-1)
    codes = (codes | (scaled.signbit().long() << 3)).view(rows, columns).to(torch.uint8)
    return Nvfp4(codes[:, 0::2] | (codes[:, 1::2] << 4), scale, global_scale)


def to_fp8(matrix: Tensor) -> Fp8:
    """Quantise float [out, in]."""
    scale = (matrix.float().abs().max() / E4M3_MAX).clamp_min(1e-30)
    return Fp8((matrix.float() / scale).to(torch.float8_e4m3fn), scale)
