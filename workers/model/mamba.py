"""The Mamba-2 mixer over many tokens of a sequence, and the parts that windows share with it.

Exists to keep the recurrence of prefill and training in one place. Per head, with A = -exp(a_log)
and dt = softplus(dt + dt_bias):  h_t = exp(dt A) h_{t-1} + dt x_t B_t^T,  y_t = h_t C_t + D x_t.
The chunked form is the state-space duality of Mamba-2 (arXiv 2405.21060, section 6): inside a
chunk it is a masked matrix product, between chunks a short loop carries the state. State maths
is float32 whatever the model dtype. b batch, t tokens, h heads, p head_dim, g groups, n state.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from workers.kernels.cpu import calls
from workers.kernels.cpu import mamba as kernel
from workers.model.config import ModelConfig
from workers.model.norm import gated_group_norm
from workers.model.ranks import Ranks
from workers.model.weights import MambaWeights


def project(x: Tensor, weights: MambaWeights, config: ModelConfig) -> tuple[Tensor, ...]:
    """Split in_proj(x) into gate [..., inner], conv input [..., conv_dim] and dt [..., h]."""
    projected = weights.in_proj(x)
    sizes = [config.mamba_inner, config.conv_dim, config.mamba_num_heads]
    return torch.split(projected, sizes, dim=-1)


def time_step(dt: Tensor, weights: MambaWeights) -> Tensor:
    """softplus(dt + dt_bias) in float32, without a lower bound."""
    return functional.softplus(dt.float() + weights.dt_bias)


def split_heads(mixed: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Split the convolution's output into x [..., h, p], B and C [..., g, n], in float32."""
    bc = config.mamba_groups * config.ssm_state_size
    x, b, c = torch.split(mixed.float(), [config.mamba_inner, bc, bc], dim=-1)
    return (
        torch.unflatten(x, -1, (config.mamba_num_heads, config.mamba_head_dim)),
        torch.unflatten(b, -1, (config.mamba_groups, config.ssm_state_size)),
        torch.unflatten(c, -1, (config.mamba_groups, config.ssm_state_size)),
    )


def causal_conv(inputs: Tensor, history: Tensor, weights: MambaWeights) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution with SiLU.

    Args:
        inputs: [b, t, conv_dim].
        history: [b, conv_dim, K-1], the inputs before these, oldest first.
        weights: its `conv` and `conv_bias` are used.

    Returns:
        The output [b, t, conv_dim] and the history for the tokens that follow.
    """
    channels, kernel = weights.conv.shape
    padded = torch.cat([history.to(inputs.dtype), inputs.transpose(1, 2)], dim=-1)
    mixed = functional.conv1d(padded, weights.conv.unsqueeze(1), weights.conv_bias, groups=channels)
    return functional.silu(mixed).transpose(1, 2), padded[..., padded.shape[-1] - (kernel - 1) :]


def chunked_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over t tokens from an initial state, without the D x term.

    Args:
        x: [b, t, h, p] float32.
        dt: [b, t, h] float32, after softplus.
        a: [h] float32, negative.
        b: [b, t, g, n] float32.
        c: [b, t, g, n] float32.
        state: [b, h, p, n] float32, the state before the first token.
        chunk_size: tokens per matrix product; changes speed and rounding, not the result.

    Returns:
        y [b, t, h, p] and the state after the last token.
    """
    batch, tokens, heads, head_dim = x.shape
    groups, size = b.shape[2:]
    share = heads // groups  # heads that use the same B and C
    chunk = min(chunk_size, tokens)
    padding = -tokens % chunk
    if padding:
        # dt = 0 leaves the state as it is, so padding at the end is harmless.
        x, b, c = (functional.pad(item, (0, 0, 0, 0, 0, padding)) for item in (x, b, c))
        dt = functional.pad(dt, (0, 0, 0, padding))
    chunks = (tokens + padding) // chunk

    # [b, chunks, g, share, chunk, ...]: heads of one group lie together.
    steps = dt.view(batch, chunks, chunk, groups, share).permute(0, 1, 3, 4, 2)
    inputs = x.view(batch, chunks, chunk, groups, share, head_dim).permute(0, 1, 3, 4, 2, 5)
    inputs = inputs * steps.unsqueeze(-1)
    b = b.view(batch, chunks, chunk, groups, size).transpose(2, 3)  # [b, chunks, g, chunk, n]
    c = c.view(batch, chunks, chunk, groups, size).transpose(2, 3)

    # Differences of cumulative sums lose digits when the sums are large, hence float64.
    decay = torch.cumsum((steps * a.view(groups, share, 1)).double(), dim=-1)
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    between = (decay.unsqueeze(-1) - decay.unsqueeze(-2)).float()
    between = between.masked_fill(~causal, -torch.inf).exp()  # [b, chunks, g, share, chunk, chunk]
    scores = (c @ b.transpose(-1, -2)).unsqueeze(3)
    within = (scores * between) @ inputs

    # What each chunk adds to the state, then the state that each chunk starts from.
    to_end = (decay[..., -1:] - decay).float().exp().unsqueeze(-1)
    decayed = (inputs * to_end).transpose(-1, -2).flatten(3, 4)  # [b, chunks, g, share p, chunk]
    added = (decayed @ b).view(batch, chunks, heads, head_dim, size)
    whole = decay[..., -1].float().exp().view(batch, chunks, heads, 1, 1)
    starts = []
    for index in range(chunks):
        starts.append(state)
        state = state * whole[:, index] + added[:, index]
    start = torch.stack(starts, dim=1).view(batch, chunks, groups, share * head_dim, size)
    carried = torch.unflatten(c @ start.transpose(-1, -2), -1, (share, head_dim)).transpose(3, 4)
    y = within + carried * decay.float().exp().unsqueeze(-1)
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(batch, chunks * chunk, heads, head_dim)
    return y[:, :tokens], state


def mix_sequence(
    x: Tensor,
    history: Tensor,
    state: Tensor,
    weights: MambaWeights,
    config: ModelConfig,
    bounded: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The mixer over t new tokens of each of b sequences.

    Args:
        x: [b, t, d], normed.
        history: [b, conv_dim, K-1], conv inputs before these tokens (zeros at the start).
        state: [b, h, p, n] float32, SSM state before these tokens (zeros at the start).
        weights: the layer.
        config: the shape.
        bounded: how many of the t tokens, from the first, have dt bounded by time_step_min; None
            for all. transformers bounds dt where it reads a prompt and nowhere else.

    Returns:
        The output [b, t, d], the new history and the new state.
    """
    if calls.suits(x) and len(x) == 1 and norms_alone(weights.ranks):
        history, state = history[0].clone(), state[0].clone()
        limit = x.shape[1] if bounded is None else bounded
        out = kernel.sequence(weights.in_proj(x[0]), history, state, weights, config, limit)
        return project_out(out, weights)[None], history[None], state[None]
    gate, mixed, dt = project(x, weights, config)
    mixed, history = causal_conv(mixed, history, weights)
    values, b, c = split_heads(mixed, config)
    steps = time_step(dt, weights)
    if bounded is None:
        steps = steps.clamp(min=config.time_step_min)
    elif bounded > 0:
        prompt, answer = steps[:, :bounded], steps[:, bounded:]
        steps = torch.cat([prompt.clamp(min=config.time_step_min), answer], dim=1)
    y, state = chunked_scan(values, steps, weights.rate, b, c, state, config.chunk_size)
    return finish(y, values, gate, weights, config), history, state


def finish(
    y: Tensor, values: Tensor, gate: Tensor, weights: MambaWeights, config: ModelConfig
) -> Tensor:
    """Add D x, apply the gated norm and project back to d."""
    y = torch.addcmul(y, values, weights.skip.unsqueeze(-1)).flatten(-2)
    eps, ranks = config.layer_norm_epsilon, weights.ranks
    normed = gated_group_norm(y, gate, weights.norm, config.mamba_groups, eps, ranks)
    return project_out(normed, weights)


def project_out(normed: Tensor, weights: MambaWeights) -> Tensor:
    """Back to d, summed over the ranks that share the layer: [..., inner] -> [..., d]."""
    out = weights.out_proj(normed)
    return out if weights.ranks is None else weights.ranks.sum(out)


def norms_alone(ranks: Ranks | None) -> bool:
    """Whether a rank has whole groups, so that it needs no other rank for the gated norm."""
    return ranks is None or ranks.ranks_per_group == 1
