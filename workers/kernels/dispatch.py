"""What the model calls instead of its own functions when its tensors are on a GPU.

Exists so that the model needs one line for each of them and no knowledge of Triton: a function
here has the signature of the one it stands for, and imports its kernel when it is first called.
What is not a kernel (projections, norms) stays the model's own.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from workers.model import mamba

if TYPE_CHECKING:  # modules that themselves import this one
    from workers.model.config import ModelConfig
    from workers.model.moe import Routing
    from workers.model.state_tensors import StateTensors
    from workers.model.weights import MambaWeights, MoeWeights
    from workers.model.windows import MambaWindows


class Pages(Protocol):
    """What attention must know of where tokens live; `WindowPages` is one."""

    @property
    def tables(self) -> Tensor:
        """int64 [b * blocks], the blocks of each request."""

    @property
    def visible(self) -> Tensor:
        """int64 [b, q], how many stored tokens each query sees."""


@functools.cache
def has_triton() -> bool:
    """Whether kernels can be compiled here."""
    return importlib.util.find_spec("triton") is not None


def suits(tensor: Tensor) -> bool:
    """Whether the functions here should do the work on this tensor; they have no gradients."""
    return tensor.is_cuda and has_triton() and not torch.is_grad_enabled()


def attend_pages(q: Tensor, planes: Tensor, pages: Pages, config: ModelConfig) -> Tensor:
    """Stands for `workers.model.attention.attend_pages`."""
    return attend_pages_lse(q, planes, pages, config)[0]


def attend_pages_lse(
    q: Tensor, planes: Tensor, pages: Pages, config: ModelConfig
) -> tuple[Tensor, Tensor]:
    """As `attend_pages`, with the log-sum-exps that joining results of several ranks needs.

    Args:
        q: [b, queries, heads * head_dim].
        planes: one layer of the KV tensor.
        pages: where the tokens live, and how many of them each query sees.
        config: the shape.

    Returns:
        [b, queries, heads * head_dim] and float32 [b, queries, heads], natural logarithms.
    """
    from workers.kernels import paged_attention

    split = torch.unflatten(q, -1, (config.num_attention_heads, config.head_dim))
    tables = pages.tables.view(len(q), -1)
    out, lse = paged_attention.attend(split, planes, tables, pages.visible)
    return out.flatten(2), lse


def mix(
    x: Tensor,
    ssm: Tensor,
    windows: MambaWindows,
    layer: int,
    weights: MambaWeights,
    config: ModelConfig,
) -> Tensor:
    """Stands for `workers.model.windows.mix`."""
    from workers.kernels import mamba_window

    width = x.shape[1]
    gate, inputs, dt = mamba.project(x, weights, config)
    windows.inputs[layer, :, -width:] = inputs
    windows.steps[layer, :, -width:] = mamba.time_step(dt, weights)
    mixed = mamba_window.convolve(windows.inputs[layer], weights.taps, weights.conv_bias)
    y = mamba_window.scan(
        mixed,
        windows.steps[layer],
        weights.rate,
        ssm,
        windows.slots,
        groups=config.mamba_groups,
        kept=windows.drafts + 1,
        read=width,
    )
    values, _, _ = mamba.split_heads(mixed[:, windows.drafts :], config)
    return mamba.finish(y, values, gate, weights, config)


def commit(
    state: StateTensors,
    slots: Tensor,
    pending: Tensor,
    layers: list[MambaWeights],
    config: ModelConfig,
) -> None:
    """Stands for `workers.model.windows.commit`."""
    from workers.kernels import mamba_window
    from workers.model.windows import MambaWindows

    windows = MambaWindows.of(state, slots, pending, 1)
    drafts = windows.drafts
    if drafts == 0:
        return
    for layer, weights in enumerate(layers):
        inputs = windows.inputs[layer, :, :-1].contiguous()
        mamba_window.scan(
            mamba_window.convolve(inputs, weights.taps, weights.conv_bias),
            windows.steps[layer, :, :-1].contiguous(),
            weights.rate,
            state.ssm[:, layer],
            slots,
            groups=config.mamba_groups,
            kept=drafts,
            read=0,
        )
    state.conv[slots] = windows.inputs[:, :, drafts:-1].permute(1, 0, 3, 2)


def experts(x: Tensor, routing: Routing, weights: MoeWeights) -> Tensor:
    """Stands for `workers.model.moe.experts`."""
    from workers.kernels import latent_experts

    return latent_experts.run_experts(
        x, routing.indices, routing.weights, weights.expert_up, weights.expert_down
    )
