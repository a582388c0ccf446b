"""State arrives byte for byte whatever the layouts: several agents in one process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.integration.handoff.workers import Setup, Worker, memory_of, wait
from tests.unit.state.shapes import SMALL, Memory, Whole, blank
from workers.handoff.receiver import Arrival
from workers.handoff.sender import Sent
from workers.parallel.layout import ParallelLayout
from workers.state.geometry import StateGeometry
from workers.state.layout import DRAFT_KV, KV, StateLayout
from workers.state.reshard import Places

DRAFTS = replace(SMALL, draft_attn_layers=1, draft_hidden_size=6, max_draft_tokens=2)
ONE, TP2, TP4 = (ParallelLayout.tensor_parallel(ranks) for ranks in (1, 2, 4))
KVP2 = ParallelLayout(kvp=2, tpf=2, interleave=2)
KVP2_TPA2 = ParallelLayout(kvp=2, tpa=2, ep=4, interleave=4)


def _hand_off(
    source: StateLayout, target: StateLayout, tokens: int, chunks: tuple[int, ...]
) -> tuple[Sent, bool]:
    """Hand one request off, chunk by chunk; the outcome, and whether all bytes are right."""
    prefill = Worker(Setup("prefill", source, blocks=40))
    decode = Worker(Setup("decode", target, blocks=40, fill=7))
    both = (prefill, decode)
    try:
        decode.accounts.allocate(1, 3)  # something that must not be touched
        ticket = decode.reserve(5, tokens)
        assert isinstance(ticket, bytes)
        held = decode.accounts.holding(5)
        prefill.open(5, ticket, tokens, seed=11)
        wait(lambda: prefill.granted(5), both, "leave to write")
        for chunk in chunks:
            prefill.advance(5, chunk)
            prefill.step()
        prefill.finish(5, 1005)
        wait(lambda: bool(prefill.outcomes and decode.outcomes), both, "both outcomes")

        assert decode.outcomes == [Arrival(5, tokens, 1005)]
        (sent,) = prefill.outcomes
        assert isinstance(sent, Sent)
        wanted = blank(target, 40, 4, 7)
        whole = Whole.random(source.geometry, tokens, 11)
        places = Places(held.blocks, held.slot)
        for rank in target.ranks:
            whole.place(target, rank, places, wanted[rank])
            _clear_unused(target, rank, places, tokens, wanted[rank])
        right = all(
            np.array_equal(found[kind], wanted[rank][kind])
            for rank, store in enumerate(decode.stores)
            for found in (memory_of(store),)
            for kind in target.kinds
        )
        decode.accounts.free(1)
        assert decode.audit() == prefill.audit() == (0, 0, 0)
        return sent, right
    finally:
        prefill.close()
        decode.close()


def _clear_unused(
    layout: StateLayout, rank: int, places: Places, tokens: int, memory: Memory
) -> None:
    """Places after the last token are zero, up to the end of the last block."""
    parallel, mine = layout.parallel, layout.rank_geometry
    held = parallel.local_tokens(parallel.kvp_rank(rank), tokens)
    for kind, layers in ((KV, mine.attn_layers), (DRAFT_KV, mine.draft_attn_layers)):
        if layers:
            shape = (-1, layers, 2, mine.kv_heads, mine.block_tokens, mine.head_dim * 2)
            blocks = memory[kind].reshape(shape)
            for token in range(held, len(places.blocks) * mine.block_tokens):
                block, offset = divmod(token, mine.block_tokens)
                blocks[places.blocks[block], :, :, :, offset] = 0


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (ONE, ONE),
        (TP2, TP2),
        (ONE, KVP2),
        (TP2, KVP2),
        (TP4, KVP2_TPA2),
        (KVP2_TPA2, TP2),
        (KVP2, KVP2_TPA2),
        (KVP2_TPA2, ONE),
    ],
)
def test_a_prompt_read_in_chunks_arrives_whole(
    source: ParallelLayout, target: ParallelLayout
) -> None:
    sent, right = _hand_off(
        StateLayout(DRAFTS, source), StateLayout(DRAFTS, target), 53, (16, 30, 48)
    )
    assert right
    report = sent.report
    kv_bytes = 53 * 2 * 2 * 8 * 2  # tokens x KV heads x (key, value) x head dim x bytes
    replicas = max(1, target.tpa // 2)
    assert report.kv_bytes == kv_bytes * DRAFTS.attn_layers * replicas
    hidden = 12 * target.size
    assert report.mtp_bytes == kv_bytes * replicas + hidden


@pytest.mark.parametrize("tokens", [1, 4, 6, 33])
def test_equal_layouts_need_one_descriptor_for_each_kind_and_a_partly_filled_block(
    tokens: int,
) -> None:
    layout = StateLayout(SMALL)
    sent, right = _hand_off(layout, layout, tokens, ())
    assert right
    # A partly filled block has a run for each layer, K and V, and head; whole blocks before it
    # are one run that the first of these continues.
    rest = tokens % SMALL.block_tokens
    runs = SMALL.attn_layers * 2 * SMALL.kv_heads if rest else 1
    assert sent.report.descriptors == runs + 2


@pytest.mark.parametrize(
    "geometry", [replace(SMALL, mamba_layers=0), replace(SMALL, attn_layers=0)]
)
def test_kinds_without_layers_are_left_out(geometry: StateGeometry) -> None:
    sent, right = _hand_off(StateLayout(geometry, TP2), StateLayout(geometry, KVP2), 10, (8,))
    assert right
    assert (sent.report.kv_bytes == 0) == (geometry.attn_layers == 0)
    assert (sent.report.mamba_bytes == 0) == (geometry.mamba_layers == 0)


def test_a_rank_that_gets_nothing_is_not_waited_for() -> None:
    """Two tokens of attention only: the second KVP rank has none of them."""
    geometry = replace(SMALL, mamba_layers=0)
    _, right = _hand_off(StateLayout(geometry), StateLayout(geometry, KVP2), 2, ())
    assert right
