"""How many bytes the state of one request takes.

Exists so that pools, layouts and hand-offs count with the same numbers, derived once from the
model's shape instead of from tensors that happen to be at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from workers.model.config import ModelConfig

SSM_DTYPE: Final = torch.float32


@dataclass(frozen=True, slots=True)
class StateGeometry:
    """Shape of the state of one model on one rank. A kind without layers takes no bytes."""

    attn_layers: int
    kv_heads: int
    head_dim: int
    mamba_layers: int
    conv_kernel: int
    ssm_heads: int
    ssm_groups: int
    ssm_head_dim: int
    ssm_state_size: int
    block_tokens: int
    dtype: torch.dtype  # of KV and conv; SSM state is always float32
    # What speculation adds; all 0 without it.
    draft_attn_layers: int = 0
    draft_hidden_size: int = 0
    max_draft_tokens: int = 0

    def __post_init__(self) -> None:
        if self.block_tokens < 1:
            raise ValueError(f"block_tokens {self.block_tokens}: must be at least 1, e.g. 16")
        if self.mamba_layers and self.conv_kernel < 2:
            raise ValueError(
                f"conv_kernel {self.conv_kernel}: Mamba layers need a kernel of at least 2; "
                "correct conv_kernel in the model's config.json"
            )

    @classmethod
    def from_config(
        cls,
        config: ModelConfig,
        *,
        block_tokens: int,
        dtype: torch.dtype,
        max_draft_tokens: int = 0,
    ) -> StateGeometry:
        """State of `config` when the model runs in `dtype` and drafts up to `max_draft_tokens`."""
        drafts = max_draft_tokens > 0
        return cls(
            attn_layers=config.attention_layers,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            mamba_layers=config.mamba_layers,
            conv_kernel=config.conv_kernel,
            ssm_heads=config.mamba_num_heads,
            ssm_groups=config.mamba_groups,
            ssm_head_dim=config.mamba_head_dim,
            ssm_state_size=config.ssm_state_size,
            block_tokens=block_tokens,
            dtype=dtype,
            draft_attn_layers=config.mtp_attention_layers if drafts else 0,
            draft_hidden_size=config.hidden_size if drafts else 0,
            max_draft_tokens=max_draft_tokens,
        )

    @property
    def conv_dim(self) -> int:
        """Channels of the convolution: x of all heads, then B and C of all groups."""
        return self.ssm_heads * self.ssm_head_dim + 2 * self.ssm_groups * self.ssm_state_size

    @property
    def kv_block_shape(self) -> tuple[int, ...]:
        """[KV heads, attention layers, key or value, tokens, head dim] of one block in memory."""
        return (self.kv_heads, self.attn_layers, 2, self.block_tokens, self.head_dim)

    @property
    def draft_kv_block_shape(self) -> tuple[int, ...]:
        """As `kv_block_shape`, of the attention layers of the MTP block."""
        return (self.kv_heads, self.draft_attn_layers, 2, self.block_tokens, self.head_dim)

    @property
    def conv_shape(self) -> tuple[int, ...]:
        """[Mamba layers, channels, inputs kept] of one slot."""
        return (self.mamba_layers, self.conv_dim, max(self.conv_kernel - 1, 0))

    @property
    def ssm_shape(self) -> tuple[int, ...]:
        """[Mamba layers, heads, head dim, state size] of one slot."""
        return (self.mamba_layers, self.ssm_heads, self.ssm_head_dim, self.ssm_state_size)

    @property
    def window_inputs_shape(self) -> tuple[int, ...]:
        """[Mamba layers, drafts, channels] of one slot: inputs that may yet be rejected."""
        return (self.mamba_layers, self.max_draft_tokens, self.conv_dim)

    @property
    def window_steps_shape(self) -> tuple[int, ...]:
        """[Mamba layers, drafts, heads] of one slot: time steps of those inputs."""
        return (self.mamba_layers, self.max_draft_tokens, self.ssm_heads)

    @property
    def draft_kv_block_bytes(self) -> int:
        """Bytes of the draft KV of one block."""
        return _product(self.draft_kv_block_shape) * self.dtype.itemsize

    @property
    def draft_hidden_bytes(self) -> int:
        """Bytes of the hidden state that the next draft of one request starts from."""
        return self.draft_hidden_size * self.dtype.itemsize

    @property
    def kv_block_bytes(self) -> int:
        """Bytes of one KV block, all layers."""
        return _product(self.kv_block_shape) * self.dtype.itemsize

    @property
    def conv_slot_bytes(self) -> int:
        """Bytes of the conv state of one request, all layers."""
        return _product(self.conv_shape) * self.dtype.itemsize

    @property
    def ssm_slot_bytes(self) -> int:
        """Bytes of the SSM state of one request, all layers."""
        return _product(self.ssm_shape) * SSM_DTYPE.itemsize

    def blocks_for(self, tokens: int) -> int:
        """KV blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_tokens)


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
