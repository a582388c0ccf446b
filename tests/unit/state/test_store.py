"""Sizes, regions and addresses agree with the tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protos.tandem.v1.handoff_pb2 import StateKind
from tests.unit.state.shapes import SMALL
from workers.state.geometry import StateGeometry
from workers.state.layout import Region, StateLayout
from workers.state.store import StateStore

KV, CONV, SSM = (
    StateKind.STATE_KIND_ATTENTION_KV,
    StateKind.STATE_KIND_MAMBA_CONV,
    StateKind.STATE_KIND_MAMBA_SSM,
)

geometries = st.builds(
    StateGeometry,
    attn_layers=st.integers(0, 3),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([2, 8]),
    mamba_layers=st.integers(0, 3),
    conv_dim=st.integers(1, 9),
    conv_kernel=st.integers(2, 4),
    ssm_heads=st.integers(1, 3),
    ssm_head_dim=st.integers(1, 4),
    ssm_state_size=st.integers(1, 4),
    block_tokens=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)


@given(geometries)
def test_sizes_are_those_of_the_tensors(geometry: StateGeometry) -> None:
    store = StateStore(geometry, blocks=3, slots=2)
    tensors = store.tensors
    assert tensors.kv.shape == (3, *geometry.kv_block_shape)
    assert tensors.kv.nbytes == 3 * geometry.kv_block_bytes
    assert tensors.conv.nbytes == 2 * geometry.conv_slot_bytes
    assert tensors.ssm.nbytes == 2 * geometry.ssm_slot_bytes
    assert tensors.ssm.dtype == torch.float32
    whole = geometry.kv_block_bytes * 3 + 2 * (geometry.conv_slot_bytes + geometry.ssm_slot_bytes)
    assert sum(part.length_bytes for part in store.memory().ranges) == whole


@given(geometries, st.integers(1, 20))
def test_regions_hold_the_blocks_of_the_tokens_and_the_slot(
    geometry: StateGeometry, tokens: int
) -> None:
    blocks = list(range(30, 5, -1))
    regions = {r.kind: r for r in StateLayout(geometry).regions(blocks, 7, tokens)}
    needed = -(-tokens // geometry.block_tokens)
    assert set(regions) == (
        ({KV} if geometry.attn_layers else set())
        | ({CONV, SSM} if geometry.mamba_layers else set())
    )
    if KV in regions:
        assert regions[KV].parts == tuple(blocks[:needed])
    if CONV in regions:
        assert regions[CONV].parts == regions[SSM].parts == (7,)


def test_addresses_point_at_the_parts() -> None:
    store = StateStore(SMALL, blocks=6, slots=3)
    kv, conv, ssm = store.layout.regions((4, 1), 2, 5)
    assert store.addresses(kv).tolist() == [
        store.tensors.kv[4].data_ptr(),
        store.tensors.kv[1].data_ptr(),
    ]
    assert store.addresses(conv).tolist() == [store.tensors.conv[2].data_ptr()]
    assert store.addresses(ssm).tolist() == [store.tensors.ssm[2].data_ptr()]


@given(st.lists(st.integers(0, 9), unique=True, min_size=1))
def test_contents_are_the_bytes_of_the_parts_in_order(parts: list[int]) -> None:
    store = StateStore(SMALL, blocks=10, slots=1)
    store.tensors.kv.view(torch.uint8).random_(0, 256)
    region = Region(KV, SMALL.kv_block_bytes, tuple(parts))
    found = b"".join(bytes(run) for run in store.contents(region))
    assert found == b"".join(
        store.tensors.kv[part].view(torch.uint8).numpy().tobytes() for part in parts
    )


def test_a_part_outside_the_store_is_refused() -> None:
    store = StateStore(SMALL, blocks=2, slots=1)
    with pytest.raises(ValueError, match="STATE_KIND_ATTENTION_KV: part 2 is outside the 2 parts"):
        store.addresses(Region(KV, SMALL.kv_block_bytes, (2,)))


def test_only_the_unused_places_of_a_block_are_cleared() -> None:
    store = StateStore(SMALL, blocks=2, slots=1)
    store.tensors.kv.fill_(1)
    store.clear_tail(1, used_tokens=3)
    assert store.tensors.kv[0].eq(1).all()
    assert store.tensors.kv[1, :, :, :, :3].eq(1).all()
    assert store.tensors.kv[1, :, :, :, 3:].eq(0).all()


def test_too_few_blocks_and_no_tokens_are_refused() -> None:
    layout = StateLayout(SMALL)
    with pytest.raises(ValueError, match="9 tokens need 3 blocks of 4 tokens, found 2"):
        layout.regions((0, 1), 0, 9)
    with pytest.raises(ValueError, match="tokens 0"):
        layout.regions((0, 1), 0, 0)


def test_a_layout_over_ranks_is_refused_until_it_is_built() -> None:
    with pytest.raises(ValueError, match="kvp 2"):
        StateLayout(SMALL, kvp=2)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="block_tokens 0"):
        replace(SMALL, block_tokens=0)
    with pytest.raises(ValueError, match="conv_kernel 1"):
        replace(SMALL, conv_kernel=1)
