"""Each kernel against float64, on drawn inputs.

Exists apart from the tests because the same checks run twice: on a GPU with shapes of real models,
and through Triton's interpreter on a CPU with tiny ones. Kernels are imported when they are
checked, so that tests can be collected where Triton is missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

# Largest difference, in parts of the largest number of a row: its sums have terms of one size.
CLOSE = {torch.float32: 3e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True, slots=True)
class Limits:
    """How large drawn shapes may get."""

    requests: int
    keys: int
    head_dims: tuple[int, ...]
    states: tuple[int, ...]
    heads: int
    experts: int
    tokens: int
    widths: tuple[int, ...]  # of experts


TINY = Limits(3, 300, (8, 7, 32), (16, 11), 6, 9, 20, (16, 19, 70))
LARGE = Limits(16, 6000, (64, 128, 80), (64, 128, 256), 64, 64, 700, (256, 1024, 1300))


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """Requests with their own numbers of visible keys, in scattered blocks."""

    dtype: torch.dtype
    requests: int
    queries: int
    kv_heads: int
    share: int
    head_dim: int
    block_tokens: int
    keys: int
    split_keys: int
    seed: int


@dataclass(frozen=True, slots=True)
class ScanCase:
    """A window of `width` tokens after `drafts` accepted ones."""

    dtype: torch.dtype
    requests: int
    drafts: int
    width: int
    groups: int
    share: int
    head_dim: int
    size: int
    taps: int
    bias: bool
    seed: int


@dataclass(frozen=True, slots=True)
class ExpertsCase:
    """Tokens that each choose some of the experts, evenly or nearly all the same."""

    dtype: torch.dtype
    tokens: int
    chosen: int
    experts: int
    size: int
    narrow: int
    crowded: bool
    seed: int


_DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
_SEEDS = st.integers(0, 2**32)


def attention_cases(limits: Limits) -> st.SearchStrategy[AttentionCase]:
    return st.builds(
        AttentionCase,
        dtype=_DTYPES,
        requests=st.integers(1, limits.requests),
        queries=st.integers(1, 8),
        kv_heads=st.sampled_from([1, 2]),
        share=st.sampled_from([1, 3, 16]),
        head_dim=st.sampled_from(limits.head_dims),
        block_tokens=st.sampled_from([16, 5]),
        keys=st.integers(1, limits.keys),
        split_keys=st.sampled_from([64, 1024]),
        seed=_SEEDS,
    )


def scan_cases(limits: Limits) -> st.SearchStrategy[ScanCase]:
    return st.builds(
        ScanCase,
        dtype=_DTYPES,
        requests=st.integers(1, limits.requests),
        drafts=st.integers(0, 7),
        width=st.integers(0, 8),
        groups=st.sampled_from([1, 2]),
        share=st.integers(1, limits.heads // 2),
        head_dim=st.sampled_from(limits.head_dims),
        size=st.sampled_from(limits.states),
        taps=st.integers(1, 4),
        bias=st.booleans(),
        seed=_SEEDS,
    ).filter(lambda case: case.drafts + case.width > 0)


def experts_cases(limits: Limits) -> st.SearchStrategy[ExpertsCase]:
    return st.builds(
        ExpertsCase,
        dtype=_DTYPES,
        tokens=st.integers(0, limits.tokens),
        chosen=st.integers(1, 5),
        experts=st.integers(5, limits.experts),
        size=st.sampled_from(limits.widths),
        narrow=st.sampled_from(limits.widths),
        crowded=st.booleans(),
        seed=_SEEDS,
    )


def check_attention(case: AttentionCase, device: str) -> None:
    from workers.kernels import paged_attention

    rng = torch.Generator().manual_seed(case.seed)
    most = -(-case.keys // case.block_tokens)
    blocks = case.requests * most
    kv = torch.randn(
        blocks, 2, 2, case.kv_heads, case.block_tokens, case.head_dim, generator=rng
    ).to(case.dtype)
    tables = torch.randperm(blocks, generator=rng).view(case.requests, most)
    # The queries of a window see one key more each; some see none, some more than there are.
    first = torch.randint(-3, case.keys + 3, (case.requests, 1), generator=rng)
    visible = (first + torch.arange(case.queries)).clamp(min=0)
    needed = -(-visible.amax(1, keepdim=True) // case.block_tokens)
    tables = tables.masked_fill(torch.arange(most) >= needed, -1)
    # Queries come as part of a wider tensor, as from one product for queries, keys and values.
    heads = case.kv_heads * case.share
    fused = torch.randn(case.requests, case.queries, (heads + 2) * case.head_dim, generator=rng).to(
        case.dtype
    )
    q = torch.unflatten(fused.to(device)[..., : heads * case.head_dim], -1, (heads, case.head_dim))
    planes, tables, visible = kv.to(device)[:, 1], tables.to(device), visible.to(device)
    out, lse = paged_attention.attend(q, planes, tables, visible, split_keys=case.split_keys)
    expected, expected_lse = _attention(q, planes, tables, visible)
    _assert_close(out, expected, case.dtype)
    torch.testing.assert_close(lse.double(), expected_lse, atol=3e-5, rtol=3e-5)


def check_combining_ranks(case: AttentionCase, device: str) -> None:
    """Joining what two holders of different keys computed equals one who holds all."""
    from workers.kernels import paged_attention

    rng = torch.Generator().manual_seed(case.seed)
    shape = (case.requests, case.queries, case.kv_heads * case.share)
    keys = case.keys % 40 + 1
    scores = torch.randn(*shape, keys, generator=rng)
    values = torch.randn(*shape, keys, case.head_dim, generator=rng)
    cut = int(torch.randint(0, keys + 1, (1,), generator=rng))
    parts = [_soften(scores[..., part], values[..., part, :]) for part in _cuts(cut)]
    out, lse = paged_attention.combine(
        torch.stack([part for part, _ in parts]).float().to(device),
        torch.stack([part for _, part in parts]).float().to(device),
        torch.float32,
    )
    expected, expected_lse = (part.to(device) for part in _soften(scores, values))
    _assert_close(out, expected, torch.float32)
    torch.testing.assert_close(lse.double(), expected_lse, atol=3e-5, rtol=3e-5)


def check_scan(case: ScanCase, device: str) -> None:
    from workers.kernels import mamba_window

    given = _scan_inputs(case, device)
    kept = case.drafts + 1 if case.width else case.drafts
    before = given.ssm.clone()
    mixed = mamba_window.convolve(given.inputs, given.taps, given.bias)
    _assert_close(mixed, _convolution(given), case.dtype)
    y = mamba_window.scan(
        mixed,
        given.steps,
        given.rate,
        given.ssm[:, 1],
        given.slots,
        groups=case.groups,
        kept=kept,
        read=case.width,
    )
    # From the kernel's own rounded convolution, so that only the scan's rounding is left.
    expected, state = _recurrence(case, given, mixed, before[given.slots, 1], kept)
    _assert_close(y, expected, torch.float32)
    _assert_close(given.ssm[given.slots, 1], state, torch.float32)
    given.ssm[given.slots, 1] = before[given.slots, 1]
    assert given.ssm.equal(before), "a state that is not in the batch was written to"


def check_scan_does_not_depend_on_windows(case: ScanCase, device: str) -> None:
    """All tokens in one window leave the state, bit by bit, that one at a time leaves."""
    from workers.kernels import mamba_window

    given = _scan_inputs(case, device)
    mixed = mamba_window.convolve(given.inputs, given.taps, given.bias)
    tokens = mixed.shape[1]
    whole, stepped = given.ssm.clone(), given.ssm.clone()

    def scan(part: slice, ssm: Tensor, count: int) -> Tensor:
        return mamba_window.scan(
            mixed[:, part].contiguous(),
            given.steps[:, part].contiguous(),
            given.rate,
            ssm[:, 1],
            given.slots,
            groups=case.groups,
            kept=count,
            read=count,
        )

    y = scan(slice(None), whole, tokens)
    for token in range(tokens):
        one = scan(slice(token, token + 1), stepped, 1)
        _assert_close(one[:, 0], y[:, token].double(), torch.float32)
    assert whole.equal(stepped)


def check_experts(case: ExpertsCase, device: str) -> None:
    from workers.kernels import latent_experts

    rng = torch.Generator().manual_seed(case.seed)
    liking = torch.rand(case.tokens, case.experts, generator=rng)
    if case.crowded:
        liking[:, 2] += 1.0
    indices = liking.topk(case.chosen).indices
    scales = torch.rand(case.tokens, case.chosen, generator=rng)
    x = torch.randn(case.tokens, case.narrow, generator=rng).to(case.dtype)
    shape = (case.experts, case.size, case.narrow)
    up = (torch.randn(shape, generator=rng) * case.narrow**-0.5).to(case.dtype)
    down = (torch.randn(shape, generator=rng) * case.size**-0.5).to(case.dtype)
    x, indices, scales, up, down = (t.to(device) for t in (x, indices, scales, up, down))
    out = latent_experts.run_experts(x, indices, scales, up, down)
    expected = torch.zeros(case.tokens, case.narrow, dtype=torch.float64, device=device)
    magnitude = torch.zeros_like(expected)
    for expert in range(case.experts):
        tokens, choices = (indices == expert).nonzero(as_tuple=True)
        hidden = (x[tokens].double() @ up[expert].double().T).relu() ** 2
        hidden = hidden * scales[tokens, choices, None].double()
        expected.index_add_(0, tokens, hidden @ down[expert].double())
        magnitude.index_add_(0, tokens, hidden @ down[expert].double().abs())
    _assert_close(out, expected, case.dtype, magnitude)
    again = latent_experts.run_experts(x, indices, scales, up, down)
    assert again.equal(out), "two runs differ"


def _attention(q: Tensor, planes: Tensor, tables: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    requests, queries, heads, head_dim = q.shape
    share = heads // planes.shape[2]
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    lse = torch.full(q.shape[:-1], -math.inf, dtype=torch.float64, device=q.device)
    for request in range(requests):
        stored = planes[tables[request][tables[request] >= 0]].double()
        k, v = stored.permute(1, 2, 0, 3, 4).flatten(2, 3).repeat_interleave(share, dim=1)
        for query in range(queries):
            seen = min(int(visible[request, query]), k.shape[1])
            scores = k[:, :seen] @ q[request, query].double().unsqueeze(-1) / head_dim**0.5
            out[request, query], lse[request, query] = _soften(scores.squeeze(-1), v[:, :seen])
    return out, lse


def _soften(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of scores [..., s] over values [..., s, d], and its log-sum-exp."""
    scores, values = scores.double(), values.double()
    weights = torch.softmax(scores, dim=-1)
    return (weights.unsqueeze(-2) @ values).squeeze(-2), torch.logsumexp(scores, dim=-1)


def _cuts(cut: int) -> tuple[slice, slice]:
    return slice(0, cut), slice(cut, None)


@dataclass(frozen=True, slots=True)
class _ScanInputs:
    inputs: Tensor
    taps: Tensor
    bias: Tensor | None
    steps: Tensor
    rate: Tensor
    ssm: Tensor
    slots: Tensor


def _scan_inputs(case: ScanCase, device: str) -> _ScanInputs:
    rng = torch.Generator().manual_seed(case.seed)
    heads, tokens = case.groups * case.share, case.drafts + case.width
    channels = heads * case.head_dim + 2 * case.groups * case.size
    inputs = torch.randn(case.requests, case.taps - 1 + tokens, channels, generator=rng)
    taps = torch.randn(case.taps, channels, generator=rng) * case.taps**-0.5
    bias = torch.randn(channels, generator=rng).to(device, case.dtype) if case.bias else None
    steps = torch.rand(case.requests, tokens, heads, generator=rng) ** 3
    # Requests with fewer drafts than others are padded with time steps of 0.
    padding = torch.randint(0, case.drafts + 1, (case.requests, 1), generator=rng)
    steps = steps.masked_fill((torch.arange(tokens) < padding).unsqueeze(-1), 0)
    rate = -torch.rand(heads, generator=rng).mul(3).exp()
    slots = torch.randperm(case.requests + 2, generator=rng)[: case.requests]
    ssm = torch.randn(case.requests + 2, 3, heads, case.head_dim, case.size, generator=rng)
    return _ScanInputs(
        inputs.to(device, case.dtype),
        taps.to(device, case.dtype),
        bias,
        steps.to(device),
        rate.to(device),
        ssm.to(device),
        slots.to(device),
    )


def _convolution(given: _ScanInputs) -> Tensor:
    taps, inputs = given.taps.double(), given.inputs.double()
    tokens = inputs.shape[1] - len(taps) + 1
    mixed = torch.stack([inputs[:, i : i + tokens] * tap for i, tap in enumerate(taps)]).sum(0)
    return functional.silu(mixed if given.bias is None else mixed + given.bias.double())


def _recurrence(
    case: ScanCase, given: _ScanInputs, mixed: Tensor, state: Tensor, kept: int
) -> tuple[Tensor, Tensor]:
    heads, bc = case.groups * case.share, case.groups * case.size
    x, b, c = torch.split(mixed.double(), [heads * case.head_dim, bc, bc], dim=-1)
    x = torch.unflatten(x, -1, (heads, case.head_dim))
    b, c = (
        torch.unflatten(item, -1, (case.groups, case.size)).repeat_interleave(case.share, dim=2)
        for item in (b, c)
    )
    steps, rate, state = given.steps.double(), given.rate.double(), state.double()
    saved, outputs = state, []
    for token in range(mixed.shape[1]):
        added = (x[:, token] * steps[:, token, :, None]).unsqueeze(-1) * b[:, token].unsqueeze(-2)
        state = state * (steps[:, token] * rate).exp()[..., None, None] + added
        if token == kept - 1:
            saved = state
        outputs.append((state @ c[:, token].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, dim=1)[:, mixed.shape[1] - case.width :], saved


def _assert_close(
    found: Tensor, expected: Tensor, dtype: torch.dtype, size: Tensor | None = None
) -> None:
    """Compare with float64; `size` is the sum of the terms' magnitudes, where it is known."""
    assert found.shape == expected.shape
    size = expected.abs().amax(-1, keepdim=True) if size is None else size
    excess = (found.double() - expected).abs() - CLOSE[dtype] * size
    # "Not above" would let pass what is not a number.
    assert bool((excess <= 0).all()), f"off by {excess.amax()} more than may be"
