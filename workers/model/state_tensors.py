"""What a forward pass remembers between calls, as plain tensors.

Exists so that the model and whoever owns the memory (the engine's store, the hand-off) agree on
one layout and nothing else: the model never allocates state while it runs.

A step reads a *window* of each request: one token that is committed but not yet read, and drafts
after it that may be rejected. `conv` and `ssm` are always those after the last committed token
that was read, the first one of the last window; what its drafts would add waits in the window
buffers until it is known how many of them hold. Nothing is ever rolled back, and no state is
kept per draft.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.model.config import ModelConfig


def by_layer(memory: Tensor) -> Tensor:
    """KV as the model sees it, of memory that holds it head by head.

    A block is one run of memory, and in it all layers of a KV head are one: whoever holds only
    some of the heads takes or gives them as few long runs. Kernels go by strides.

    Args:
        memory: [num_blocks, kv_heads, layers, 2, block_size, head_dim].

    Returns:
        A view [num_blocks, layers, 2, kv_heads, block_size, head_dim].
    """
    return memory.permute(0, 2, 3, 1, 4, 5)


@dataclass(frozen=True, slots=True)
class StateTensors:
    """State of all requests of one engine.

    Attributes:
        kv: [num_blocks, attention layers, 2, kv_heads, block_size, head_dim], model dtype, a view
            of memory as `by_layer` has it. Whoever writes the first token of a block zeroes the
            rest of it, so a block that is in use holds finite numbers only.
        draft_kv: [num_blocks, attention layers of the MTP block, 2, kv_heads, block_size,
            head_dim], same blocks as kv; no layers where nothing is drafted.
        conv: [slots, mamba layers, conv_dim, conv_kernel - 1], model dtype: the last inputs of
            the causal convolution, oldest first, zeros before the prompt.
        ssm: [slots, mamba layers, heads, head_dim, state_size], float32.
        window_inputs: [slots, mamba layers, W, conv_dim], model dtype, W at least the most
            drafts of a window: entry i is the input of the convolution for draft i.
        window_steps: [slots, mamba layers, W, heads], float32: dt of each draft after softplus.
    """

    kv: Tensor
    draft_kv: Tensor
    conv: Tensor
    ssm: Tensor
    window_inputs: Tensor
    window_steps: Tensor

    @property
    def block_size(self) -> int:
        """Tokens of one KV block."""
        return self.kv.shape[4]

    @classmethod
    def zeros(
        cls,
        config: ModelConfig,
        *,
        blocks: int,
        block_size: int,
        slots: int,
        draft_tokens: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> StateTensors:
        """Zeroed state of a model that drafts up to `draft_tokens` tokens a step (0 for none)."""

        def zeros(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.zeros(shape, dtype=kind, device=device)

        def pages(layers: int) -> Tensor:
            heads = config.num_key_value_heads
            return by_layer(zeros(blocks, heads, layers, 2, block_size, config.head_dim))

        rows = (slots, config.mamba_layers)
        heads = config.mamba_num_heads
        return cls(
            kv=pages(config.attention_layers),
            draft_kv=pages(config.mtp_attention_layers if draft_tokens else 0),
            conv=zeros(*rows, config.conv_dim, max(config.conv_kernel - 1, 0)),
            ssm=zeros(
                *rows, heads, config.mamba_head_dim, config.ssm_state_size, kind=torch.float32
            ),
            window_inputs=zeros(*rows, draft_tokens, config.conv_dim),
            window_steps=zeros(*rows, draft_tokens, heads, kind=torch.float32),
        )
