"""The Mamba mixer between its projections: windows of several requests, tokens of one prompt."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.kernels.cpu.calls import function

if TYPE_CHECKING:  # modules that themselves import this one
    from workers.model.config import ModelConfig
    from workers.model.state_tensors import StateTensors
    from workers.model.weights import MambaWeights

MOST_TOKENS = 16  # accepted drafts and a window together, for which the kernel has room
_CHUNK_TOKENS = 64


class MambaLayer(ctypes.Structure):
    """`Mamba` of mamba.cpp: where the weights of a layer are, and its shape."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("taps", "conv_bias", "norm")),
        *((name, ctypes.c_void_p) for name in ("rate", "skip", "dt_bias")),
        *((name, ctypes.c_int64) for name in ("heads", "head_dim", "groups", "size", "kernel")),
        ("eps", ctypes.c_double),
    )


class Slots(ctypes.Structure):
    """`Slots` of mamba.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("conv", "ssm", "inputs", "steps")),
        *(
            (f"{name}_{unit}", ctypes.c_int64)
            for name in ("conv", "ssm", "inputs", "steps")
            for unit in ("slot", "layer")
        ),
    )


def describe(weights: MambaWeights, config: ModelConfig) -> MambaLayer:
    """What kernels are told of a layer; it holds as long as `weights` is alive."""
    return MambaLayer(
        weights.taps.data_ptr(),
        None if weights.conv_bias is None else weights.conv_bias.data_ptr(),
        weights.norm.data_ptr(),
        weights.rate.data_ptr(),
        weights.skip.data_ptr(),
        weights.dt_bias.data_ptr(),
        config.mamba_num_heads,
        config.mamba_head_dim,
        config.mamba_groups,
        config.ssm_state_size,
        config.conv_kernel,
        config.layer_norm_epsilon,
    )


def describe_slots(state: StateTensors) -> Slots:
    """What kernels are told of the state; it holds as long as the tensors are alive."""
    tensors = (state.conv, state.ssm, state.window_inputs, state.window_steps)
    return Slots(
        *(tensor.data_ptr() for tensor in tensors),
        *(tensor.stride(dimension) for tensor in tensors for dimension in (0, 1)),
    )


@dataclass(frozen=True, slots=True)
class SlotWindows:
    """Windows over state that is read and written where it lies; see `windows.MambaWindows`.

    Attributes:
        described: where the state is.
        slots: int64 [b].
        pending: int64 [b].
    """

    described: Slots
    slots: Tensor
    pending: Tensor

    @classmethod
    def of(cls, state: StateTensors, slots: Tensor, pending: Tensor) -> SlotWindows:
        """Windows of the requests in `slots`, `pending` as in `HybridModel.verify`."""
        return cls(describe_slots(state), slots.contiguous(), pending.contiguous())

    def mix(
        self, projected: Tensor, layer: int, weights: MambaWeights, config: ModelConfig
    ) -> Tensor:
        """From the input projection [b, w, ...] of a layer to what its output projection takes.

        The layer's state and window buffers are those after this window when it returns.
        """
        projected = projected.contiguous()
        rows, width, _ = projected.shape
        out = projected.new_empty(rows, width, config.mamba_inner)
        function("mamba_windows", projected.dtype)(
            ctypes.byref(weights.described or describe(weights, config)),
            ctypes.byref(self.described),
            layer,
            rows,
            width,
            self.slots.data_ptr(),
            self.pending.data_ptr(),
            projected.data_ptr(),
            out.data_ptr(),
        )
        return out

    def save(self, state: StateTensors) -> None:
        """Nothing is left to store: every layer has stored its own."""


def sequence(
    projected: Tensor,
    history: Tensor,
    state: Tensor,
    weights: MambaWeights,
    config: ModelConfig,
    bounded: int,
) -> Tensor:
    """From the input projection of t tokens of one request to what its output projection takes.

    Args:
        projected: [t, inner + conv_dim + heads].
        history: [conv_dim, K-1], contiguous; updated in place.
        state: [h, p, n] float32, contiguous; updated in place.
        weights: the layer.
        config: the shape.
        bounded: how many of the t tokens have dt bounded by time_step_min.

    Returns:
        [t, inner].
    """
    projected = projected.contiguous()
    tokens, heads = len(projected), config.mamba_num_heads
    chunks = -(-tokens // _CHUNK_TOKENS)
    out = projected.new_empty(tokens, config.mamba_inner)
    buffers = [
        torch.empty(tokens, config.conv_dim),
        torch.empty(tokens, heads),
        torch.empty(chunks, config.mamba_groups, _CHUNK_TOKENS, _CHUNK_TOKENS),
        torch.empty(tokens, config.mamba_inner),
    ]
    function("mamba_sequence", projected.dtype)(
        ctypes.byref(weights.described or describe(weights, config)),
        tokens,
        bounded,
        config.time_step_min,
        history.data_ptr(),
        state.data_ptr(),
        projected.data_ptr(),
        *(buffer.data_ptr() for buffer in buffers),
        out.data_ptr(),
    )
    return out
