"""Shapes of state that several tests need."""

from __future__ import annotations

import torch

from workers.state.geometry import StateGeometry

SMALL = StateGeometry(
    attn_layers=2,
    kv_heads=2,
    head_dim=8,
    mamba_layers=3,
    conv_dim=24,
    conv_kernel=4,
    ssm_heads=4,
    ssm_head_dim=4,
    ssm_state_size=8,
    block_tokens=4,
    dtype=torch.bfloat16,
)
