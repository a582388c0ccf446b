"""Every tensor of the published Nemotron 3 Super release is understood."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.unit.checkpoint.super_release import (
    BYTES,
    EXPERTS,
    TENSORS,
    precision,
    published_tensors,
    super_config,
    super_quantisation,
)
from workers.checkpoint.claims import Source, claim
from workers.checkpoint.headers import Header, dtype_name
from workers.checkpoint.inventory import Role, inventory
from workers.checkpoint.quantisation import Form
from workers.checkpoint.reading import piece_bytes
from workers.checkpoint.region import Region
from workers.checkpoint.schema import canonical_name, model_schema, mtp_schema
from workers.checkpoint.shard import RankShard
from workers.model import CheckpointError
from workers.parallel.layout import ParallelLayout

FILE = Path("model.safetensors")


@pytest.fixture(scope="module")
def headers() -> dict[str, Header]:
    """What the release's files say of themselves, by canonical name."""
    return {
        canonical_name(tensor.name): Header(
            tensor.name, FILE, tensor.shape, dtype_name(tensor.dtype)
        )
        for tensor in published_tensors()
    }


@pytest.fixture(scope="module")
def sources(headers: Mapping[str, Header]) -> tuple[Source, ...]:
    return claim(super_config(), super_quantisation(), headers, "release")


def test_the_inventory_is_the_release() -> None:
    expected = {tensor.name: (tensor.shape, tensor.dtype) for tensor in published_tensors()}
    computed = {
        tensor.published: (tensor.shape, tensor.dtype)
        for tensor in inventory(super_config(), super_quantisation())
    }
    assert computed == expected


def test_its_tensors_and_bytes_add_up_on_the_meta_device() -> None:
    stored = list(inventory(super_config(), super_quantisation()))
    assert len(stored) == len({tensor.name for tensor in stored}) == TENSORS
    total = sum(torch.empty(t.shape, dtype=t.dtype, device="meta").nbytes for t in stored)
    assert total == BYTES


def test_the_precision_map_has_41100_modules() -> None:
    assert Counter(precision().values()) == {"NVFP4": 40 * EXPERTS * 2 + 1, "FP8": 139}


def test_every_tensor_is_claimed_by_exactly_one_weight(
    headers: Mapping[str, Header], sources: tuple[Source, ...]
) -> None:
    claims = Counter(
        header.key
        for source in sources
        for piece in source.pieces
        for header in piece.parts.values()
    )
    assert len(claims) == TENSORS
    assert set(claims.values()) == {1}
    assert claims.keys() == {header.key for header in headers.values()}


def test_every_weight_of_the_model_has_its_tensors(sources: tuple[Source, ...]) -> None:
    config = super_config()
    schema = model_schema(config) | mtp_schema(config)
    assert {source.name: source.shape for source in sources} == {
        name: expected.shape for name, expected in schema.items()
    }
    roles = {
        Form.PLAIN: {Role.VALUES},
        Form.FP8: {Role.VALUES, Role.SCALE, Role.INPUT_SCALE},
        Form.NVFP4: {Role.VALUES, Role.SCALE, Role.GLOBAL_SCALE, Role.INPUT_SCALE},
    }
    for source in sources:
        for piece in source.pieces:
            assert set(piece.parts) - {Role.KV_SCALE} == roles[piece.form]


def test_a_full_load_reads_all_bytes_but_the_scales_of_activations_and_kv(
    sources: tuple[Source, ...],
) -> None:
    read = sum(
        piece_bytes(piece, Region.whole(source.shape[1:] if source.stacked else source.shape))
        for source in sources
        for piece in source.pieces
    )
    assert read == BYTES - 4 * 41_100 - 4 * 16


@pytest.mark.parametrize("kvp_ep", [(1, 2), (4, 8), (8, 16)])
def test_a_rank_reads_little_more_than_its_share(
    sources: tuple[Source, ...], kvp_ep: tuple[int, int]
) -> None:
    kvp, ep = kvp_ep
    config = super_config()
    rank = RankShard(ep - 1, ParallelLayout(kvp=kvp, tpa=2, tpf=1, ep=ep))
    read = 0
    for source in sources:
        region = rank.region(source.name, source.shape, config)
        if source.stacked:
            ((first, last),) = region.dimensions[0]
            kept = source.pieces[first:last]
            read += sum(piece_bytes(piece, Region(region.dimensions[1:])) for piece in kept)
        else:
            read += piece_bytes(source.pieces[0], region)
    latent_and_router = 2 * 4096 * 1024 + 512 * 4096  # of each of 41 MoE layers
    key_value = 9 * 2 * 256 * 4096
    groups = 40 * 2 * 8 * 128 * 4096  # B and C rows of in_proj
    once = 131072 * 4096 + 4096 * 8192 + 41 * latent_and_router + key_value + groups
    assert BYTES / ep * 0.99 < read < BYTES / ep + 2 * once


def test_a_tensor_too_many_is_refused(headers: Mapping[str, Header]) -> None:
    extra = Header("backbone.layers.88.norm.weight", FILE, (4096,), "BF16")
    with pytest.raises(CheckpointError, match=r"1 unexpected tensors: 'backbone\.layers\.88"):
        claim(
            super_config(), super_quantisation(), {**headers, "layers.88.norm.weight": extra}, "x"
        )
