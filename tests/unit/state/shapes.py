"""Shapes of state that several tests need, and the state of a request without any layout."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from protos.tandem.v1.handoff_pb2 import StateKind
from workers.parallel.layout import ParallelLayout
from workers.state.geometry import StateGeometry
from workers.state.layout import CONV, DRAFT_HIDDEN, DRAFT_KV, KV, SSM, StateLayout
from workers.state.reshard import Places

Memory = dict[StateKind.ValueType, NDArray[np.uint8]]
Array = NDArray[np.uint8]

SMALL = StateGeometry(
    attn_layers=2,
    kv_heads=2,
    head_dim=8,
    mamba_layers=3,
    conv_kernel=4,
    ssm_heads=4,
    ssm_groups=2,
    ssm_head_dim=4,
    ssm_state_size=8,
    block_tokens=4,
    dtype=torch.bfloat16,
)


@dataclass(frozen=True, slots=True)
class Whole:
    """All state of one request as bytes, indexed by head, channel and token of the whole model.

    kv and draft_kv [layers, 2, heads, tokens, bytes], conv_x [layers, heads, p, bytes], conv_bc
    [layers, 2, groups, n, bytes], ssm [layers, heads, bytes], hidden [bytes].
    """

    kv: Array
    draft_kv: Array
    conv_x: Array
    conv_bc: Array
    ssm: Array
    hidden: Array

    @classmethod
    def random(cls, geometry: StateGeometry, tokens: int, seed: int) -> Whole:
        rng = np.random.default_rng(seed)
        size = geometry.dtype.itemsize
        kept = (geometry.conv_kernel - 1) * size

        def draw(*shape: int) -> Array:
            return rng.integers(0, 256, shape, dtype=np.uint8)

        token = (2, geometry.kv_heads, tokens, geometry.head_dim * size)
        heads, groups = geometry.ssm_heads, geometry.ssm_groups
        return cls(
            kv=draw(geometry.attn_layers, *token),
            draft_kv=draw(geometry.draft_attn_layers, *token),
            conv_x=draw(geometry.mamba_layers, heads, geometry.ssm_head_dim, kept),
            conv_bc=draw(geometry.mamba_layers, 2, groups, geometry.ssm_state_size, kept),
            ssm=draw(
                geometry.mamba_layers, heads, geometry.ssm_head_dim * geometry.ssm_state_size * 4
            ),
            hidden=draw(geometry.draft_hidden_bytes),
        )

    def place(self, layout: StateLayout, rank: int, places: Places, memory: Memory) -> None:
        """Write a rank's share where it belongs, token by token and head by head."""
        mine, parallel = layout.rank_geometry, layout.parallel
        for kind, whole in ((KV, self.kv), (DRAFT_KV, self.draft_kv)):
            if not whole.size:
                continue
            heads = list(layout.kv_heads(rank))
            shape = (-1, len(heads), whole.shape[0], 2, mine.block_tokens, whole.shape[-1])
            blocks = memory[kind].reshape(shape).transpose(0, 2, 3, 1, 4, 5)
            for token in range(whole.shape[3]):
                if parallel.owner(token) == parallel.kvp_rank(rank):
                    block, offset = divmod(parallel.local_index(token), mine.block_tokens)
                    blocks[places.blocks[block], :, :, :, offset] = whole[:, :, heads, token]
        if mine.mamba_layers:
            heads, groups = list(layout.ssm_heads(rank)), list(layout.ssm_groups(rank))
            layers, kept = mine.mamba_layers, self.conv_x.shape[-1]
            conv = memory[CONV].reshape(-1, layers, mine.conv_dim, kept)[places.slot]
            x = len(heads) * mine.ssm_head_dim
            conv[:, :x] = self.conv_x[:, heads].reshape(layers, x, kept)
            conv[:, x:] = self.conv_bc[:, :, groups].reshape(layers, -1, kept)
            ssm = memory[SSM].reshape(-1, layers, len(heads), self.ssm.shape[-1])
            ssm[places.slot] = self.ssm[:, heads]
        if self.hidden.size:
            memory[DRAFT_HIDDEN].reshape(-1, self.hidden.size)[places.slot] = self.hidden


def blank(layout: StateLayout, blocks: int, slots: int, fill: int) -> list[Memory]:
    """Memory of every rank of a group, filled with one byte."""
    parts = {KV: blocks, DRAFT_KV: blocks, CONV: slots, SSM: slots, DRAFT_HIDDEN: slots}
    return [
        {
            kind: np.full(count * layout.part_bytes(kind), fill, dtype=np.uint8)
            for kind, count in parts.items()
        }
        for _ in layout.ranks
    ]


@st.composite
def geometries(draw: st.DrawFn) -> StateGeometry:
    """Small models that some layouts of up to 8 ranks divide; kinds may be missing."""
    drafts = draw(st.booleans())
    return StateGeometry(
        attn_layers=draw(st.integers(0, 2)),
        kv_heads=draw(st.sampled_from([1, 2, 4])),
        head_dim=draw(st.sampled_from([2, 3])),
        mamba_layers=draw(st.integers(0, 3)),
        conv_kernel=draw(st.integers(2, 4)),
        ssm_heads=8,
        ssm_groups=draw(st.sampled_from([1, 2, 4, 8])),
        ssm_head_dim=draw(st.integers(1, 3)),
        ssm_state_size=draw(st.integers(1, 3)),
        block_tokens=4,
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
        draft_attn_layers=1 if drafts else 0,
        draft_hidden_size=5 if drafts else 0,
        max_draft_tokens=1 if drafts else 0,
    )


@st.composite
def layouts(draw: st.DrawFn, geometry: StateGeometry) -> StateLayout:
    """A legal layout of a model over up to 8 ranks: plain TP, which may replicate, or KVP x TPA."""
    block_tokens = draw(st.sampled_from([1, 2, 4, 6]))
    shape = replace(geometry, block_tokens=block_tokens)
    if draw(st.booleans()):
        return StateLayout(
            shape, ParallelLayout.tensor_parallel(draw(st.sampled_from([1, 2, 4, 8])))
        )
    tpa = draw(st.sampled_from([size for size in (1, 2, 4) if size <= geometry.kv_heads]))
    kvp = draw(st.sampled_from([size for size in (1, 2, 4, 8) if size * tpa <= 8]))
    interleave = draw(
        st.sampled_from([size for size in (1, 2, 3, 4, 6) if block_tokens % size == 0])
    )
    return StateLayout(shape, ParallelLayout(kvp, tpa, kvp * tpa, 1, interleave))
