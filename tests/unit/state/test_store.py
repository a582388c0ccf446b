"""Sizes, addresses and bytes agree with the tensors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.state.shapes import SMALL
from workers.state.geometry import StateGeometry
from workers.state.layout import CONV, KV
from workers.state.store import StateStore

geometries = st.builds(
    StateGeometry,
    attn_layers=st.integers(0, 3),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([2, 8]),
    mamba_layers=st.integers(0, 3),
    conv_kernel=st.integers(2, 4),
    ssm_heads=st.integers(1, 3),
    ssm_groups=st.integers(1, 2),
    ssm_head_dim=st.integers(1, 4),
    ssm_state_size=st.integers(1, 4),
    block_tokens=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)


def by_head(store: StateStore) -> torch.Tensor:
    """The bytes of KV in the order of memory, live."""
    return store.tensors.kv.permute(0, 3, 1, 2, 4, 5).view(torch.uint8)


@given(geometries)
def test_sizes_are_those_of_the_tensors(geometry: StateGeometry) -> None:
    store = StateStore(geometry, blocks=3, slots=2)
    tensors = store.tensors
    heads, layers, planes, *page = geometry.kv_block_shape
    assert tensors.kv.shape == (3, layers, planes, heads, *page)
    assert tensors.kv.nbytes == 3 * geometry.kv_block_bytes
    assert tensors.conv.nbytes == 2 * geometry.conv_slot_bytes
    assert tensors.ssm.nbytes == 2 * geometry.ssm_slot_bytes
    assert tensors.ssm.dtype == torch.float32
    whole = geometry.kv_block_bytes * 3 + 2 * (geometry.conv_slot_bytes + geometry.ssm_slot_bytes)
    assert sum(part.length_bytes for part in store.memory().ranges) == whole


def test_the_bases_are_where_the_tensors_are() -> None:
    store = StateStore(SMALL, blocks=6, slots=3)
    for kind, tensor in ((KV, store.tensors.kv), (CONV, store.tensors.conv)):
        base = store.base(kind)
        assert (base.address, base.length_bytes) == (tensor.data_ptr(), tensor.nbytes)


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 10)), min_size=1))
def test_contents_are_the_bytes_of_the_runs_in_order(runs: list[tuple[int, int]]) -> None:
    store = StateStore(SMALL, blocks=10, slots=1)
    memory = by_head(store)
    memory.random_(0, 256)
    flat = memory.numpy().tobytes()
    offsets, lengths = np.array(runs, dtype=np.uint64).T
    views = list(store.contents(KV, offsets, lengths))
    assert b"".join(views) == b"".join(flat[a : a + n] for a, n in runs)


def test_long_runs_are_not_copied_and_neighbours_are_one_view() -> None:
    store = StateStore(replace(SMALL, head_dim=4096), blocks=8, slots=1)
    part = store.geometry.kv_block_bytes
    offsets = np.array([part, 2 * part, 6 * part], dtype=np.uint64)
    views = list(store.contents(KV, offsets, np.full(3, part, dtype=np.uint64)))
    assert [len(view) for view in views] == [2 * part, part]
    by_head(store)[1].fill_(5)
    assert views[0][0] == 5


def test_only_the_unused_places_of_a_block_are_cleared() -> None:
    store = StateStore(SMALL, blocks=2, slots=1)
    store.tensors.kv.fill_(1)
    store.clear_tail(1, used_tokens=3)
    assert store.tensors.kv[0].eq(1).all()
    assert store.tensors.kv[1, :, :, :, :3].eq(1).all()
    assert store.tensors.kv[1, :, :, :, 3:].eq(0).all()


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="block_tokens 0"):
        replace(SMALL, block_tokens=0)
    with pytest.raises(ValueError, match="conv_kernel 1"):
        replace(SMALL, conv_kernel=1)
