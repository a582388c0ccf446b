"""Attention over the shares of all KVP ranks, joined, is attention over all tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.unit.checkpoint.mixed import small_config
from tests.unit.parallel.lone_rank import LoneRank
from workers.model.kvp_attention import attend_local, combine, pack
from workers.model.kvp_paging import KvpPages, parts_of
from workers.parallel.layout import ParallelLayout

_HEADS, _KV_HEADS, _DIM = 8, 2, 4
CONFIG = replace(
    small_config(), num_attention_heads=_HEADS, num_key_value_heads=_KV_HEADS, head_dim=_DIM
)


def attend_all(q: Tensor, kv: Tensor, lengths: list[int], width: int) -> Tensor:
    """Attention in one piece: q [b, w, heads, dim], kv [b, tokens, 2, kv_heads, dim]."""
    results = []
    for row, length in enumerate(lengths):
        k, v = kv[row, : length + width].unbind(1)
        keys = torch.arange(length + width)
        visible = keys <= length + torch.arange(width)[:, None]
        out = functional.scaled_dot_product_attention(
            q[row].transpose(0, 1),
            k.transpose(0, 1),
            v.transpose(0, 1),
            attn_mask=visible,
            enable_gqa=True,
        )
        results.append(out.transpose(0, 1).flatten(-2))
    return torch.stack(results)


@settings(max_examples=40, deadline=None)
@given(
    kvp=st.sampled_from([2, 4]),
    interleave=st.sampled_from([1, 2, 4]),
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=4),
    width=st.integers(1, 4),
    parts=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_ranks_together_attend_as_one(
    kvp: int, interleave: int, lengths: list[int], width: int, parts: int, seed: int
) -> None:
    """Context that lies in pages, then a window; what an earlier owner left must not show."""
    rng = torch.Generator().manual_seed(seed)
    layout = ParallelLayout(kvp=kvp, ep=kvp, interleave=interleave)
    block_size, batch = 4, len(lengths)
    most = max(lengths) + width
    blocks = -(-most // (block_size * kvp))
    tables = torch.randperm(batch * blocks, generator=rng).view(batch, blocks)
    tokens = torch.randn(batch, most, 2, _KV_HEADS, _DIM, generator=rng)
    q = torch.randn(batch, width, _HEADS, _DIM, generator=rng)
    contexts = torch.tensor(lengths)
    received = []
    for rank in range(kvp):
        ranks = LoneRank(rank, layout, overlap_parts=parts)
        planes = torch.full((batch * blocks, 2, _KV_HEADS, block_size, _DIM), math.nan)
        for row, length in enumerate(lengths):
            for begin, end in ((0, length), (length, length + width)):
                if begin == end:
                    continue
                pages = KvpPages.of(
                    tables[row : row + 1],
                    block_size,
                    torch.tensor([begin]),
                    end - begin,
                    ranks,
                    torch.float32,
                )
                pages.open(planes)
                pages.write(planes, tokens[row, begin:end])
        pages = KvpPages.of(tables, block_size, contexts, width, ranks, torch.float32)
        found = [
            attend_local(q[part.rows].flatten(-2), planes, part, CONFIG) for part in pages.parts
        ]
        out, lse = (torch.cat(each) for each in zip(*found, strict=True))
        received.append(pack(out, lse, kvp))
    expected = torch.unflatten(attend_all(q, tokens, lengths, width), -1, (kvp, -1))
    for rank in range(kvp):
        mixed = combine(torch.stack([message[rank] for message in received]), _DIM, torch.float32)
        torch.testing.assert_close(mixed, expected[:, :, rank], atol=2e-6, rtol=1e-5)


@given(
    rows=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    width=st.integers(1, 5),
    interleave=st.sampled_from([2, 4]),
)
def test_every_token_of_a_window_has_one_place_on_one_rank(
    rows: list[int], width: int, interleave: int
) -> None:
    layout = ParallelLayout(kvp=3, ep=3, interleave=interleave)
    block_size, blocks = 4, 3
    tables = torch.arange(len(rows) * blocks).view(-1, blocks)
    tables[0, -1] = -1  # one request may have fewer blocks than the others
    places: dict[int, tuple[int, int, int]] = {}
    for rank in range(3):
        pages = KvpPages.of(
            tables, block_size, torch.tensor(rows), width, LoneRank(rank, layout), torch.float32
        )
        kept = pages.places
        for token, block, offset in zip(
            kept.placed.tolist(), kept.blocks.tolist(), kept.offsets.tolist(), strict=True
        ):
            assert token not in places
            places[token] = (rank, block, offset)
    assert len(set(places.values())) == len(places)
    for number in range(len(rows) * width):
        row, position = number // width, rows[number // width] + number % width
        local = layout.local_index(position)
        block = tables[row, local // block_size].item() if local < block_size * blocks else -1
        if block < 0:
            assert number not in places
        else:
            assert places[number] == (layout.owner(position), block, local % block_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_log_sum_exp_travels_exactly_in_the_message_of_its_output(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(3)
    out = torch.randn(2, 3, 4, 8, generator=rng).to(dtype)
    lse = torch.randn(2, 3, 4, generator=rng) * 50
    message = pack(out, lse, 2)
    assert message.shape == (2, 2, 3, 2, 8 + 4 // dtype.itemsize)
    assert message.is_contiguous()
    # Of one rank alone the joined output is its own.
    for half in range(2):
        joined = combine(message[half : half + 1], 8, dtype)
        assert torch.equal(joined, out[:, :, 2 * half : 2 * half + 2].flatten(-2))
    sums = message[..., 8:].contiguous().view(torch.float32).squeeze(-1)
    assert torch.equal(sums.permute(1, 2, 0, 3).flatten(2), lse)


def test_a_rank_without_visible_tokens_adds_nothing() -> None:
    out = torch.randn(2, 1, 1, 2, 4)
    lse = torch.stack([torch.zeros(1, 1, 2), torch.full((1, 1, 2), -math.inf)])
    received = torch.cat([out, lse.unsqueeze(-1)], dim=-1)
    assert torch.equal(combine(received, 4, torch.float32), out[0].flatten(-2))
    nobody = received.clone()
    nobody[..., 4] = -math.inf
    assert torch.equal(combine(nobody, 4, torch.float32), torch.zeros(1, 1, 8))


@given(st.integers(1, 40), st.integers(1, 8))
def test_parts_cover_a_batch_in_order(rows: int, parts: int) -> None:
    found = [row for part in parts_of(rows, parts) for row in range(rows)[part]]
    assert found == list(range(rows))
    assert len(parts_of(rows, parts)) == min(rows, parts)
