"""Every legal layout for a phase, as arrays.

Sizes are powers of two. Attention groups stay inside one scale-up domain; only expert parallelism
and pipeline stages may leave it. TPA beyond the KV heads repeats KV and is offered without KVP
alone (plain tensor parallelism); Helix keeps TPA <= K.
"""

from __future__ import annotations

from collections.abc import Iterator

from workers.perf.layouts import Layout, Layouts
from workers.perf.model_spec import ModelSpec

MOST_RANKS = 64
_DECODE_STAGES = (1, 2, 4)
_PREFILL_STAGES = (1, 2, 4, 8, 16)


def decode_layouts(model: ModelSpec, devices: int, domain: int, most: int = MOST_RANKS) -> Layouts:
    """Layouts of decode instances with at most `devices` devices."""
    return Layouts.of(_decode(model, min(devices, most), domain))


def prefill_layouts(model: ModelSpec, devices: int, domain: int, most: int = MOST_RANKS) -> Layouts:
    """Layouts of prefill instances: without KVP, with more pipeline stages."""
    return Layouts.of(_prefill(model, min(devices, most), domain))


def powers(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [1 << bit for bit in range(most.bit_length()) if 1 << bit <= most]


def _decode(model: ModelSpec, most: int, domain: int) -> Iterator[Layout]:
    for stages in _DECODE_STAGES:
        if stages > model.stack.blocks:
            continue
        for ranks in powers(most // stages):
            for kvp, tpa, dp in _attention(model, ranks, domain, helix=True):
                for tpf, ep in _experts(model, ranks):
                    layout = Layout(stages, dp, kvp, tpa, tpf, ep)
                    yield layout
                    if kvp > 1:
                        yield Layout(stages, dp, kvp, tpa, tpf, ep, hopb=True)


def _prefill(model: ModelSpec, most: int, domain: int) -> Iterator[Layout]:
    for stages in _PREFILL_STAGES:
        if stages > model.stack.blocks:
            continue
        for ranks in powers(most // stages):
            for kvp, tpa, dp in _attention(model, ranks, domain, helix=False):
                for tpf, ep in _experts(model, ranks):
                    yield Layout(stages, dp, kvp, tpa, tpf, ep)


def _attention(
    model: ModelSpec, ranks: int, domain: int, *, helix: bool
) -> Iterator[tuple[int, int, int]]:
    """KVP, TPA and DP of `ranks` ranks."""
    for group in powers(min(ranks, domain, _most_group(model))):
        for tpa in powers(group):
            kvp = group // tpa
            if kvp > 1 and not (helix and tpa <= model.stack.kv_heads and model.stack.attention):
                continue
            if tpa > model.stack.heads:
                continue
            yield kvp, tpa, ranks // group


def _most_group(model: ModelSpec) -> int:
    """Ranks that an attention group may have: recurrent heads are shared over all of them."""
    recurrent = [group.heads for group in model.stack.recurrence]
    return min(recurrent, default=MOST_RANKS)


def _experts(model: ModelSpec, ranks: int) -> Iterator[tuple[int, int]]:
    """TPF and EP of `ranks` ranks; models without experts have TPF alone."""
    for ep in powers(min(ranks, max(model.stack.expert_count, 1))):
        yield ranks // ep, ep
