"""The chunked scan, the one-token step and the plain recurrence are the same function."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.model.mamba import chunked_scan


def recurrence(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt A) h_{t-1} + dt x B^T, y_t = h_t C, token by token in float64."""
    x, dt, a, b, c, state = (item.double() for item in (x, dt, a, b, c, state))
    share = x.shape[2] // b.shape[2]
    b, c = b.repeat_interleave(share, 2), c.repeat_interleave(share, 2)
    outputs = []
    for t in range(x.shape[1]):
        step = dt[:, t, :, None, None]
        state = state * torch.exp(step * a[:, None, None])
        state = state + step * x[:, t, :, :, None] * b[:, t, :, None, :]
        outputs.append(torch.einsum("bhpn,bhn->bhp", state, c[:, t]))
    return torch.stack(outputs, 1).float(), state.float()


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 40),
    chunk=st.integers(1, 17),
    groups=st.sampled_from([1, 2, 4]),
    decay=st.sampled_from([0.01, 1.0, 100.0]),
    seed=st.integers(0, 10_000),
)
def test_chunked_scan_is_the_recurrence(
    tokens: int, chunk: int, groups: int, decay: float, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    x, state = normal(2, tokens, 4, 3), normal(2, 4, 3, 5)
    b, c = normal(2, tokens, groups, 5), normal(2, tokens, groups, 5)
    dt, a = normal(2, tokens, 4).abs(), -decay * normal(4).abs()
    y, last = chunked_scan(x, dt, a, b, c, state, chunk)
    expected_y, expected_last = recurrence(x, dt, a, b, c, state)
    torch.testing.assert_close(y, expected_y, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(last, expected_last, atol=2e-5, rtol=2e-5)


def test_strong_decay_keeps_precision_late_in_a_chunk() -> None:
    """Cumulative sums in the thousands must not blur decays near zero."""
    tokens = 128
    x, b, c = torch.ones(1, tokens, 1, 1), torch.ones(1, tokens, 1, 1), torch.ones(1, tokens, 1, 1)
    dt = torch.full((1, tokens, 1), 10.0)
    dt[:, -1] = 1e-4
    a, state = torch.tensor([-128.0]), torch.zeros(1, 1, 1, 1)
    y, _ = chunked_scan(x, dt, a, b, c, state, tokens)
    expected, _ = recurrence(x, dt, a, b, c, state)
    assert y[0, -1].item() == pytest.approx(expected[0, -1].item(), rel=1e-6)


def test_gradients_pass_the_scan_with_strong_decay() -> None:
    """Masked entries are exp(-inf): their gradient must be zero, not NaN."""
    rng = torch.Generator().manual_seed(0)
    dt = torch.rand(1, 20, 2, generator=rng).mul_(50).requires_grad_()
    x = torch.randn(1, 20, 2, 3, generator=rng)
    b = torch.randn(1, 20, 1, 4, generator=rng)
    y, _ = chunked_scan(x, dt, torch.tensor([-90.0, -0.1]), b, b, torch.zeros(1, 2, 3, 4), 8)
    (gradient,) = torch.autograd.grad(y.sum(), dt)
    assert gradient.isfinite().all()
