"""Mamba over a window of new tokens, of which all but the first may turn out to be wrong.

Exists so that speculation costs one read and one write of the SSM state per step, whatever the
number of drafts, and no copy of it: the recurrence is linear, so the outputs of a whole window
follow from one state and the small inputs (x, B, dt) of its tokens. A step folds three things
into the state: the drafts of the last window that were accepted, the first token of the new
window, and nothing else. The drafts of the new window only leave their inputs behind.

b requests, w tokens of a window, f = the most drafts that any request has to fold, h heads,
p head_dim, g groups, n state. Requests with fewer accepted drafts are padded in front with
tokens whose time step is 0: those neither decay the state nor add to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workers.kernels import dispatch
from workers.kernels.cpu import calls
from workers.kernels.cpu.mamba import MOST_TOKENS, SlotWindows
from workers.model import mamba
from workers.model.config import ModelConfig
from workers.model.ranks import Ranks
from workers.model.state_tensors import StateTensors
from workers.model.weights import MambaWeights

Rows = tuple[slice, slice]  # rows of the batch, and the slots they are in


@dataclass(frozen=True, slots=True)
class MambaWindows:
    """The inputs of every Mamba layer of one step: accepted drafts, then the new window.

    Attributes:
        inputs: [layers, b, K-1 + f + w, conv_dim], of the convolution; the last w are filled in
            layer by layer.
        steps: [layers, b, f + w, h] float32, likewise.
        drafts: f.
        future: bool [w, f + w, 1], True where a token comes after one of the window.
        slots: int64 [b].
        runs: the batch as runs of neighbouring slots, which are updated where they lie. A batch
            in the order of its slots has the fewest.
    """

    inputs: Tensor
    steps: Tensor
    drafts: int
    future: Tensor
    slots: Tensor
    runs: tuple[Rows, ...]

    @classmethod
    def of(cls, state: StateTensors, slots: Tensor, pending: Tensor, width: int) -> MambaWindows:
        """Gather what the slots [b] remember; `pending` [b] and `width` as in `verify`."""
        accepted = (pending - 1).clamp(min=0)
        drafts = int(accepted.max())
        history = state.conv.index_select(0, slots).permute(1, 0, 3, 2)  # [layers, b, K-1, c]
        layers, batch, kept, channels = history.shape
        inputs = history.new_empty(layers, batch, kept + drafts + width, channels)
        steps = torch.empty(
            layers, batch, drafts + width, state.window_steps.shape[3], device=slots.device
        )
        if drafts == 0:
            inputs[:, :, :kept] = history
        else:
            # Shift each request to the right, so that its last accepted draft touches the window.
            numbers = torch.arange(kept + drafts, device=slots.device)
            numbers = numbers - (drafts - accepted)[:, None]
            first = torch.arange(batch, device=slots.device)[:, None]
            source = (first * (kept + drafts) + numbers.clamp(min=0)).flatten()
            stored = state.window_inputs[:, :, :drafts].index_select(0, slots).transpose(0, 1)
            stored = torch.cat([history, stored], dim=2).flatten(1, 2).index_select(1, source)
            inputs[:, :, :-width] = stored.view(layers, batch, kept + drafts, channels)
            numbers = numbers[:, :drafts]
            source = (first * drafts + numbers.clamp(min=0)).flatten()
            stored = state.window_steps[:, :, :drafts].index_select(0, slots).transpose(0, 1)
            stored = stored.flatten(1, 2).index_select(1, source)
            stored = stored.view(layers, batch, drafts, steps.shape[3])
            # Not a product with 0: what a slot has never held may not be a number.
            steps[:, :, :drafts] = stored.masked_fill((numbers < 0).unsqueeze(-1), 0)
        future = torch.ones(width, drafts + width, dtype=torch.bool, device=slots.device)
        future = future.triu_(drafts + 1).unsqueeze(-1)
        return cls(inputs, steps, drafts, future, slots, tuple(_runs(slots.tolist())))

    def save(self, state: StateTensors) -> None:
        """Store the new window's drafts, and the inputs before them."""
        kept = state.conv.shape[3]
        first = self.drafts + 1  # the window's first token is committed
        history = self.inputs[:, :, first : first + kept].permute(1, 0, 3, 2)
        inputs = self.inputs[:, :, first + kept :].transpose(0, 1)
        steps = self.steps[:, :, first:].transpose(0, 1)
        new = steps.shape[2]
        for rows, slots in self.runs:
            state.conv[slots] = history[rows]
            if new:
                state.window_inputs[slots, :, :new] = inputs[rows]
                state.window_steps[slots, :, :new] = steps[rows]


def begin(
    state: StateTensors, slots: Tensor, pending: Tensor, width: int, ranks: Ranks | None = None
) -> MambaWindows | SlotWindows:
    """The inputs of every Mamba layer of one step; `pending` [b] and `width` as in `verify`."""
    room = state.window_inputs.shape[2] + width <= MOST_TOKENS
    if room and calls.suits(state.conv) and mamba.norms_alone(ranks):
        return SlotWindows.of(state, slots, pending)
    return MambaWindows.of(state, slots, pending, width)


def _runs(slots: list[int]) -> Iterator[Rows]:
    start = 0
    for row in range(1, len(slots) + 1):
        if row == len(slots) or slots[row] != slots[row - 1] + 1:
            yield slice(start, row), slice(slots[start], slots[start] + row - start)
            start = row


def _convolve(inputs: Tensor, weights: MambaWeights) -> Tensor:
    """Causal convolution with SiLU of inputs [b, K-1 + t, conv_dim]: [b, t, conv_dim]."""
    taps = weights.taps
    length = inputs.shape[1] - len(taps) + 1
    if weights.conv_bias is None:
        mixed = inputs[:, :length] * taps[0]
    else:
        mixed = torch.addcmul(weights.conv_bias, inputs[:, :length], taps[0])
    for index in range(1, len(taps)):
        mixed.addcmul_(inputs[:, index : index + length], taps[index])
    return functional.silu(mixed, inplace=True)


def _batches(ssm: Tensor, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Views with one batch dimension: rows or groups, whichever takes fewer products.

    ssm is [r, g, ...], x and y are [r, tokens, g, ...]; the views are [r or g, ...] and
    [r or g, tokens, ...].
    """
    rows, groups = ssm.shape[:2]
    if rows < groups:
        for row in range(rows):
            yield ssm[row], x[row].transpose(0, 1), y[row].transpose(0, 1)
    else:
        for group in range(groups):
            yield ssm[:, group], x[:, :, group], y[:, :, group]


def _fold(ssm: Tensor, decay: Tensor, added: Tensor, b: Tensor) -> None:
    """ssm <- decay ssm + sum over tokens of added B^T, in place.

    Args:
        ssm: [r, h, p, n], rows of the state.
        decay: [r, h].
        added: [r, tokens, h, p], x dt, decayed to the last of the tokens.
        b: [r, tokens, g, n].
    """
    rows, tokens, groups, size = b.shape
    ssm.mul_(decay[..., None, None])
    grouped = ssm.view(rows, groups, -1, size)  # heads of one group lie together
    added = added.reshape(rows, tokens, groups, -1)
    if tokens == 1:
        grouped.addcmul_(added[:, 0].unsqueeze(-1), b[:, 0].unsqueeze(-2))
        return
    for state, x, y in _batches(grouped, added, b):
        state.baddbmm_(x.transpose(1, 2), y)


def _read(ssm: Tensor, c: Tensor, out: Tensor) -> None:
    """out [r, w, h, p] <- C_t ssm for each of w tokens; c is [r, w, g, n]."""
    rows, tokens, groups, size = c.shape
    grouped, out = ssm.view(rows, groups, -1, size), out.view(rows, tokens, groups, -1)
    for state, x, y in _batches(grouped, c, out):
        y.copy_(torch.bmm(x, state.transpose(1, 2)))


def mix(
    x: Tensor,
    ssm: Tensor,
    windows: MambaWindows | SlotWindows,
    layer: int,
    weights: MambaWeights,
    config: ModelConfig,
) -> Tensor:
    """The mixer over a window of each of b requests.

    Args:
        x: [b, w, d], normed.
        ssm: [slots, layers, h, p, n] float32, the state; that of this layer is updated in place to
            the one after the first token of the window.
        windows: the inputs before this window; those of this layer are filled in.
        layer: index among the Mamba layers.
        weights: the layer.
        config: the shape.

    Returns:
        [b, w, d].
    """
    if isinstance(windows, SlotWindows):
        mixed = windows.mix(weights.in_proj(x), layer, weights, config)
        return mamba.project_out(mixed, weights)
    ssm = ssm[:, layer]
    if dispatch.suits(x):
        return dispatch.mix(x, ssm, windows, layer, weights, config)
    batch, width, _ = x.shape
    gate, inputs, dt = mamba.project(x, weights, config)
    windows.inputs[layer, :, -width:] = inputs
    windows.steps[layer, :, -width:] = mamba.time_step(dt, weights)
    values, b, c = mamba.split_heads(_convolve(windows.inputs[layer], weights), config)
    steps = windows.steps[layer]
    first = windows.drafts  # index of the window's first token
    scaled = values * steps.unsqueeze(-1)
    y = torch.empty(batch, width, config.mamba_num_heads, config.mamba_head_dim, device=x.device)
    if first + width == 1:
        whole, folded = torch.exp(steps[:, 0] * weights.rate), scaled
    else:
        whole, decay = _decays(steps, weights.rate, windows.future)
        folded = scaled[:, : first + 1] * decay[:, 0, : first + 1].unsqueeze(-1)
    for rows, slots in windows.runs:
        state = ssm[slots]
        _fold(state, whole[rows], folded[rows], b[rows, : first + 1])
        _read(state, c[rows, first:], y[rows])
    if width > 1:
        y = _add_window(
            y, decay[:, :, first:], scaled[:, first + 1 :], b[:, first + 1 :], c[:, first:]
        )
    return mamba.finish(y, values[:, first:], gate, weights, config)


def _decays(steps: Tensor, rate: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
    """Decay of what was there before, and of what each token brought, up to later tokens.

    Args:
        steps: [b, t, h] float32.
        rate: [h].
        future: bool [w, t, 1], True where a token comes after one of the last w.

    Returns:
        [b, h], from before the first token to the first of the last w; and [b, w, t, h], from
        each token to each of the last w, 0 for those after it.
    """
    # Differences of sums lose digits when the sums are large, hence float64.
    sums = torch.cumsum(steps * rate, dim=1, dtype=torch.float64)
    last = sums[:, len(future[0]) - len(future) :]
    between = (last.unsqueeze(2) - sums.unsqueeze(1)).float()
    return last[:, 0].exp().float(), between.masked_fill_(future, -torch.inf).exp_()


def _add_window(y: Tensor, decay: Tensor, scaled: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Outputs of a window from its first state read by each C, and from the tokens after it.

    y_t = decay_t0 C_t S_0 + sum over 0 < u <= t of decay_tu (C_t B_u) dt_u x_u.

    Args:
        y: [b, w, h, p], C_t S_0 with S_0 the state after the first token.
        decay: [b, w, w, h], from token u (dimension 2) to token t (dimension 1).
        scaled: [b, w - 1, h, p], dt x of the tokens after the first.
        b: [b, w - 1, g, n].
        c: [b, w, g, n].
    """
    batch, width = y.shape[:2]
    scores = c.transpose(1, 2) @ b.permute(0, 2, 3, 1)  # [b, g, t, u]
    grouped = decay[:, :, 1:].view(batch, width, width - 1, b.shape[2], -1)
    mixing = (grouped * scores.permute(0, 2, 3, 1).unsqueeze(-1)).flatten(3)
    within = mixing.permute(0, 3, 1, 2) @ scaled.transpose(1, 2)  # [b, h, t, p]
    return torch.addcmul(within.transpose(1, 2), y, decay[:, :, 0].unsqueeze(-1))


def commit(
    state: StateTensors,
    slots: Tensor,
    pending: Tensor,
    layers: list[MambaWeights],
    config: ModelConfig,
) -> None:
    """Fold the accepted drafts of the last windows into conv and ssm; see `HybridModel.commit`."""
    if dispatch.suits(slots):
        dispatch.commit(state, slots, pending, layers, config)
        return
    windows = MambaWindows.of(state, slots, pending, 1)
    drafts = windows.drafts
    if drafts == 0:
        return
    nothing = windows.future[:, :-1].new_zeros(1, drafts, 1)
    for layer, weights in enumerate(layers):
        inputs, steps = windows.inputs[layer, :, :-1], windows.steps[layer, :, :-1]
        values, b, _ = mamba.split_heads(_convolve(inputs, weights), config)
        decay, to_end = _decays(steps, weights.rate, nothing)
        added = values * (steps * to_end[:, 0]).unsqueeze(-1)
        for rows, run in windows.runs:
            _fold(state.ssm[run, layer], decay[rows], added[rows], b[rows])
    state.conv[slots] = windows.inputs[:, :, drafts:-1].permute(1, 0, 3, 2)
