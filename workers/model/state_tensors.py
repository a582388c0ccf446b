"""What a forward pass remembers between calls, as plain tensors.

Exists so that the model and whoever owns the memory (the engine's store, the hand-off) agree on
one layout and nothing else: the model never allocates state.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class StateTensors:
    """State of all requests of one engine.

    Attributes:
        kv: [num_blocks, attention layers, 2, kv_heads, block_size, head_dim], model dtype; block
            first, so that one block is one contiguous run.
        conv: [slots, mamba layers, conv_dim, conv_kernel - 1], model dtype: the last inputs of
            the causal convolution, oldest first, zeros before the prompt.
        ssm: [slots, mamba layers, heads, head_dim, state_size], float32.
    """

    kv: Tensor
    conv: Tensor
    ssm: Tensor
