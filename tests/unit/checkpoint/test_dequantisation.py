"""NVFP4 and FP8 bytes stand for the numbers that their formats say."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.checkpoint.quantise import to_fp8, to_nvfp4
from workers.checkpoint import fp8, nvfp4


def e4m3(*values: float) -> Tensor:
    scale = torch.tensor([values]).to(torch.float8_e4m3fn)
    assert scale.float().tolist() == [list(values)], "not E4M3 numbers"
    return scale


def bits(tensor: Tensor) -> list[int]:
    """Bit patterns, which tell -0 from 0."""
    return tensor.reshape(-1).view(torch.int32).tolist()


def test_all_sixteen_codes_low_nibble_first() -> None:
    # Bytes 0x10, 0x32, ... hold the codes 0, 1, 2, 3, ... 15.
    packed = torch.tensor([[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]], dtype=torch.uint8)
    values = nvfp4.dequantise(packed, e4m3(1.0), torch.tensor(1.0))
    expected = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert bits(values) == bits(torch.tensor(expected))
    assert values.shape == (1, 16)


def test_each_block_of_sixteen_columns_has_its_scale() -> None:
    packed = torch.full((2, 16), 0x52, dtype=torch.uint8)  # columns alternate 1 and 3
    scale = torch.tensor([[1.0, 0.5], [2.0, 448.0]]).to(torch.float8_e4m3fn)
    values = nvfp4.dequantise(packed, scale, torch.tensor([0.25]))
    assert values[0].tolist() == [0.25, 0.75] * 8 + [0.125, 0.375] * 8
    assert values[1].tolist() == [0.5, 1.5] * 8 + [112.0, 336.0] * 8


def test_the_ends_of_the_scales() -> None:
    packed = torch.full((1, 8), 0xF7, dtype=torch.uint8)  # 6 and -6
    largest = nvfp4.dequantise(packed, e4m3(448.0), torch.tensor(1.0))
    assert largest[0, :2].tolist() == [2688.0, -2688.0]
    smallest = nvfp4.dequantise(packed, e4m3(2.0**-9), torch.tensor(2.0**-20))
    assert smallest[0, :2].tolist() == [6 * 2.0**-29, -6 * 2.0**-29]
    nothing = nvfp4.dequantise(packed, e4m3(0.0), torch.tensor(3.0))
    assert bits(nothing[0, :2]) == bits(torch.tensor([0.0, -0.0]))


def test_the_global_scale_rounds_once() -> None:
    packed = torch.full((1, 8), 0x55, dtype=torch.uint8)
    third = torch.tensor(1 / 3)
    values = nvfp4.dequantise(packed, e4m3(13.0), third)
    assert values[0, 0].item() == (torch.tensor(39.0, dtype=torch.float64) * third).float().item()


def test_fp8_values_by_hand() -> None:
    #        0     1     -1    448   smallest  -0
    codes = [0x00, 0x38, 0xB8, 0x7E, 0x01, 0x80]
    stored = torch.tensor([codes], dtype=torch.uint8).view(torch.float8_e4m3fn)
    values = fp8.dequantise(stored, torch.tensor(0.5))
    assert bits(values) == bits(torch.tensor([0.0, 0.5, -0.5, 224.0, 2.0**-10, -0.0]))
    assert torch.equal(fp8.dequantise(stored, torch.tensor([0.5])), values)


matrices = st.builds(
    lambda rows, blocks, seed, exponent: (
        torch.randn(rows, 16 * blocks, generator=torch.Generator().manual_seed(seed))
        * 10.0**exponent
    ),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 2**16),
    st.integers(-6, 3),
)


@given(matrix=matrices)
def test_nvfp4_is_as_near_as_its_steps_allow(matrix: Tensor) -> None:
    """Steps of E2M1 are at most 2 of a largest 6, block scales are within 1/16 of the wanted."""
    stored = to_nvfp4(matrix)
    values = nvfp4.dequantise(stored.packed, stored.scale, stored.global_scale)
    assert torch.equal(values, stored.reference())
    rows = len(matrix)
    error = (values - matrix).view(rows, -1, 16).abs().amax(-1)
    largest = matrix.view(rows, -1, 16).abs().amax(-1)
    smallest_scale = 2.0**-9 * stored.global_scale
    assert (error <= largest * (1 / 6 + 1 / 16) + 6 * smallest_scale).all()


@given(matrix=matrices)
def test_fp8_is_as_near_as_its_steps_allow(matrix: Tensor) -> None:
    """E4M3 has three mantissa bits: half a step is 1/16 of the value, or half the least step."""
    stored = to_fp8(matrix)
    values = fp8.dequantise(stored.values, stored.scale)
    assert torch.equal(values, stored.reference())
    bound = torch.maximum(matrix.abs() / 16, 2.0**-10 * stored.scale)
    assert ((values - matrix).abs() <= bound * 1.0001).all()


@given(seed=st.integers(0, 2**16), global_scale=st.floats(2.0**-30, 2.0**20, width=32))
def test_any_bytes_are_the_product_rounded_once(seed: int, global_scale: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, 256, (3, 24), dtype=torch.uint8, generator=rng)
    codes = torch.randint(0, 0x7F, (3, 3), dtype=torch.uint8, generator=rng)  # 0x7F is NaN
    scale = codes.view(torch.float8_e4m3fn)
    ones = torch.full((3, 3), 0x38, dtype=torch.uint8).view(torch.float8_e4m3fn)
    plain = nvfp4.dequantise(packed, ones, torch.tensor(1.0)).double()
    exact = plain * scale.double().repeat_interleave(16, dim=1) * global_scale
    values = nvfp4.dequantise(packed, scale, torch.tensor(global_scale))
    assert torch.equal(values, exact.float())
