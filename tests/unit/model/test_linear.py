"""Products are the same in every way that they are computed."""

from __future__ import annotations

import pytest
import torch

from workers.model.allocator import keep_freed_memory
from workers.model.linear import Linear, linear

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [(1,), (3,), (2, 4), (200,)])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_product_is_x_times_the_weight(
    dtype: torch.dtype, rows: tuple[int, ...], bias: bool
) -> None:
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(600, 500, generator=rng) / 500**0.5
    x = torch.randn(*rows, 500, generator=rng)
    offset = torch.randn(600, generator=rng) if bias else None
    expected = x @ weight.T + (0 if offset is None else offset)
    product = Linear.of(weight.to(dtype), None if offset is None else offset.to(dtype))
    torch.testing.assert_close(
        product(x.to(dtype)).float(), expected, atol=3 * TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )
    if not bias:
        found = linear(x.to(dtype), weight.to(dtype)).float()
        torch.testing.assert_close(
            found, expected, atol=3 * TOLERANCE[dtype], rtol=TOLERANCE[dtype]
        )


def test_a_weight_in_training_gets_gradients() -> None:
    weight = torch.randn(2000, 300, requires_grad=True)
    x = torch.randn(50, 300, requires_grad=True)
    product = Linear.of(weight)
    assert product.packed is None
    (product(x).sum() + linear(x, weight).sum()).backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert x.grad is not None


def test_freed_memory_can_be_kept() -> None:
    assert keep_freed_memory() in (True, False)
    assert keep_freed_memory() == keep_freed_memory()
