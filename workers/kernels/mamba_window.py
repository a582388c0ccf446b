"""The Mamba-2 state update over a window of tokens, with one read and one write of the state.

Exists because the state is what a Mamba layer costs in decoding (4 MiB for each request and layer
of Nemotron 3 Super), and as tensor operations every product and sum over it is one more pass. A
program holds some rows of one head's state in registers, takes the tokens one after the other and
stores the state once, after the last token that is sure to stay.

Each token is folded by the same instructions wherever it stands, so the state after n tokens is
the same to the last bit whether they came one by one, in windows or as accepted drafts: with this
kernel, speculation does not even change rounding. (The form with cumulative sums, which the CPU
uses since it has no registers to keep a state in, agrees to rounding.) Padding with a time step of
0 changes nothing: exp(0) h + 0 = h.

Per head, A = rate and u = dt x:  h_t = exp(dt_t A) h_{t-1} + u_t B_t^T,  y_t = h_t C_t.

Bytes moved: 2 * 4 h p n per request for the state, and per token (conv_dim e + 4 h) read and
4 h p written (e bytes an element); the convolution before it moves 2 conv_dim e per token and
(K - 1) conv_dim e per request. b requests, t tokens, h heads, p head_dim, g groups, n state,
K taps, conv_dim = h p + 2 g n.
"""

# ruff: noqa: N803 - compile-time constants in capitals, as is usual in Triton

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from workers.kernels.language import blocks, kernel, power_of_two

# Elements of the state in one program: 64 registers for each of 128 threads.
_TILE = 8192
_CHANNELS = 512


@kernel
def _convolve(
    inputs: tl.tensor,
    taps: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    tokens: int,
    channels: int,
    TAPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """Some channels of one token of one request."""
    request = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    mixed = tl.zeros([CHANNELS], tl.float32)
    if HAS_BIAS:
        mixed += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    at = (request * (tokens + TAPS - 1) + token) * channels
    for tap in tl.static_range(TAPS):
        value = tl.load(inputs + at + tap * channels + channel, mask=inside, other=0.0)
        weight = tl.load(taps + tap * channels + channel, mask=inside, other=0.0)
        mixed += value.to(tl.float32) * weight.to(tl.float32)
    mixed = mixed / (1.0 + tl.exp(-mixed))
    place = out + (request * tokens + token) * channels + channel
    tl.store(place, mixed.to(out.dtype.element_ty), mask=inside)


@kernel
def _scan(
    mixed: tl.tensor,
    steps: tl.tensor,
    rate: tl.tensor,
    ssm: tl.tensor,
    slots: tl.tensor,
    y: tl.tensor,
    tokens: int,
    kept: int,
    first_read: int,
    channels: int,
    slot_stride: int,
    share: int,
    HEAD_DIM: tl.constexpr,
    STATE: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """ROWS rows of the state of one head of one request."""
    request = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    in_rows, in_columns = row < HEAD_DIM, column < STATE
    inside = in_rows[:, None] & in_columns[None, :]

    slot = tl.load(slots + request).to(tl.int64)
    place = ssm + slot * slot_stride + head * (HEAD_DIM * STATE)
    place = place + row[:, None] * STATE + column[None, :]
    state = tl.load(place, mask=inside, other=0.0)
    a = tl.load(rate + head)
    x_at = head * HEAD_DIM + row
    b_at = heads * HEAD_DIM + (head // share) * STATE + column
    for token in range(tokens):
        line = request * tokens + token
        dt = tl.load(steps + line * heads + head)
        x = tl.load(mixed + line * channels + x_at, mask=in_rows, other=0.0).to(tl.float32)
        b = tl.load(mixed + line * channels + b_at, mask=in_columns, other=0.0).to(tl.float32)
        # One rounding, not as the compiler likes: else it could differ with the number of tokens.
        decay = tl.full([ROWS, COLUMNS], tl.exp(dt * a), tl.float32)
        state = tl.fma(state, decay, (x * dt)[:, None] * b[None, :])
        if token == kept - 1:
            tl.store(place, state, mask=inside)
        if token >= first_read:
            c = tl.load(
                mixed + line * channels + GROUPS * STATE + b_at, mask=in_columns, other=0.0
            ).to(tl.float32)
            target = request * (tokens - first_read) + token - first_read
            read = tl.sum(state * c[None, :], axis=1)
            tl.store(y + (target * heads + head) * HEAD_DIM + row, read, mask=in_rows)


def convolve(inputs: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    """Causal depthwise convolution with SiLU, summed in float32.

    Args:
        inputs: [b, K-1 + t, conv_dim], contiguous.
        taps: [K, conv_dim], contiguous, the oldest token's first.
        bias: [conv_dim] or None.

    Returns:
        [b, t, conv_dim] in the dtype of inputs.

    Raises:
        ValueError: shapes or strides do not fit together.
    """
    batch, length, channels = inputs.shape
    kernel_size = len(taps)
    tokens = length - kernel_size + 1
    if tokens < 0 or taps.shape != (kernel_size, channels):
        raise ValueError(
            f"inputs {list(inputs.shape)} do not fit taps {list(taps.shape)}: [b, K-1 + t, c] and "
            "[K, c]"
        )
    if not (inputs.is_contiguous() and taps.is_contiguous()):
        raise ValueError("inputs and taps must be contiguous")
    if bias is not None and (bias.shape != (channels,) or not bias.is_contiguous()):
        raise ValueError(f"bias must be a contiguous [{channels}], not {list(bias.shape)}")
    out = torch.empty(batch, tokens, channels, dtype=inputs.dtype, device=inputs.device)
    if out.numel():
        width = min(power_of_two(channels), _CHANNELS)
        _convolve[(batch, tokens, blocks(channels, width))](
            inputs,
            taps,
            taps if bias is None else bias,
            out,
            tokens,
            channels,
            TAPS=kernel_size,
            HAS_BIAS=bias is not None,
            CHANNELS=width,
            num_warps=4,
        )
    return out


def scan(
    mixed: Tensor,
    steps: Tensor,
    rate: Tensor,
    ssm: Tensor,
    slots: Tensor,
    *,
    groups: int,
    kept: int,
    read: int,
) -> Tensor:
    """Run t tokens through the state: keep the one after the first `kept`, read the last `read`.

    Args:
        mixed: [b, t, conv_dim], contiguous, the convolution's output: x, B, C side by side.
        steps: [b, t, h] float32, contiguous, dt after softplus; 0 for padding.
        rate: [h] float32, A, negative.
        ssm: [slots, h, p, n] float32, contiguous but for the first dimension: one layer of the
            state as it lies. Updated in place to the state after `kept` tokens.
        slots: int32 or int64 [b], all different.
        groups: g; neighbouring heads share a group.
        kept: 1 to t.
        read: 0 to t.

    Returns:
        float32 [b, read, h, p], h_t C_t of the last `read` tokens, without the D x term.

    Raises:
        ValueError: shapes, types or strides do not fit together.
    """
    batch, tokens, channels = mixed.shape
    _, heads, head_dim, size = ssm.shape
    _check(mixed, steps, rate, ssm, slots, groups)
    if not (1 <= kept <= tokens and 0 <= read <= tokens):
        raise ValueError(f"of {tokens} tokens, {kept} cannot be kept and {read} read")
    y = torch.empty(batch, read, heads, head_dim, dtype=torch.float32, device=mixed.device)
    if batch == 0:
        return y
    columns = power_of_two(size)
    rows = min(power_of_two(head_dim), max(_TILE // columns, 1))
    _scan[(batch, heads, blocks(head_dim, rows))](
        mixed,
        steps,
        rate,
        ssm,
        slots,
        y,
        tokens,
        kept,
        tokens - read,
        channels,
        ssm.stride(0),
        heads // groups,
        HEAD_DIM=head_dim,
        STATE=size,
        GROUPS=groups,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=4,
    )
    return y


def bytes_moved(
    batch: int,
    tokens: int,
    read: int,
    heads: int,
    head_dim: int,
    groups: int,
    size: int,
    element: int,
) -> int:
    """Bytes of one `scan`, with `element` bytes for an element of `mixed`."""
    inner = heads * head_dim
    state = 2 * 4 * inner * size
    token = (inner + 2 * groups * size) * element + 4 * heads
    return batch * (state + tokens * token + read * inner * 4)


def convolution_bytes_moved(
    batch: int, tokens: int, channels: int, kernel_size: int, element: int
) -> int:
    """Bytes of one `convolve`, with `element` bytes for an element."""
    return (batch * (2 * tokens + kernel_size - 1) + kernel_size + 1) * channels * element


def _check(
    mixed: Tensor, steps: Tensor, rate: Tensor, ssm: Tensor, slots: Tensor, groups: int
) -> None:
    batch, tokens, channels = mixed.shape
    _, heads, head_dim, size = ssm.shape
    if groups < 1 or heads % groups:
        raise ValueError(f"{heads} heads cannot share {groups} groups evenly")
    if channels != heads * head_dim + 2 * groups * size:
        raise ValueError(
            f"mixed must hold {heads} x {head_dim} values and 2 x {groups} x {size} of B and C, "
            f"not {channels} channels"
        )
    if steps.shape != (batch, tokens, heads) or rate.shape != (heads,) or slots.shape != (batch,):
        raise ValueError(
            f"steps {list(steps.shape)}, rate {list(rate.shape)} and slots {list(slots.shape)} "
            f"must be [{batch}, {tokens}, {heads}], [{heads}] and [{batch}]"
        )
    if any(tensor.dtype != torch.float32 for tensor in (steps, rate, ssm)):
        raise ValueError("steps, rate and ssm must be float32")
    if not (mixed.is_contiguous() and steps.is_contiguous() and slots.is_contiguous()):
        raise ValueError("mixed, steps and slots must be contiguous")
    if len(ssm) and not ssm[0].is_contiguous():
        raise ValueError("the state of a slot must be contiguous")
