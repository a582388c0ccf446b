"""Helix, appendix A: how long a layer's KV and weights are read."""

from __future__ import annotations

import math

import numpy as np

from orchestrator.literature.check import Check, Section
from workers.perf.attention import GroupedAttention
from workers.perf.collectives import overlapped_s
from workers.perf.efficiency import IDEAL
from workers.perf.forward import Forward, decoding
from workers.perf.hardware import known_hardware
from workers.perf.layouts import Layout, Layouts
from workers.perf.mixers import Mlp
from workers.perf.model_spec import Stack
from workers.perf.precision import precision_named

_HIDDEN, _BATCH, _CONTEXT = 16384, 8, 1e6
_ATTENTION = GroupedAttention(layers=1, hidden=_HIDDEN, heads=128, kv_heads=8, head_dim=128)
_MLP = Mlp(layers=1, hidden=_HIDDEN, intermediate=65536, gated=True)
# Microseconds of one layer, from the paper's formulas with the values of its figure 1.
_KV = {
    (1, 1): 1024.0,
    (1, 2): 512.0,
    (1, 4): 256.0,
    (1, 8): 128.0,
    (1, 16): 128.0,
    (1, 32): 128.0,
    (1, 64): 128.0,
    (2, 8): 64.0,
    (4, 8): 32.0,
    (8, 8): 16.0,
}
_WEIGHTS = {(1, 1): 236.98, (8, 8): 29.62, (64, 64): 3.93}
_HELIX_WEIGHTS = {(8, 16): 17.04, (8, 32): 10.75, (8, 64): 7.60}


def section() -> Section:
    """All of appendix A, and the pipeline of figure 3."""
    return Section(
        title="Helix: reading KV and weights",
        source="arXiv 2507.07120, appendix A, figures 1 and 3",
        method=(
            "One layer, B = 8, Q = 128, K = 8, Hsz = 128, F = 65536, S = 1 M, FP4, 8,000 GB/s. "
            "KV times are those that a pass of our model spends on memory; weights by the paper's "
            "formula from our counts. KV stops shrinking at TP = K = 8."
        ),
        checks=(
            *_kv_checks(),
            *_weight_checks(),
            *_projection_checks(),
            Check(
                "HOP-B, 8 requests of 2 + 1.2 units, without overlap",
                25.6,
                8 * (2.0 + 1.2),
                1e-9,
            ),
            Check(
                "HOP-B, the same with overlap (paper rounds to 17)",
                17.0,
                float(overlapped_s(np.array(16.0), 0.0, np.array(9.6), np.array(8.0))),
                0.02,
            ),
        ),
    )


def _forward() -> Forward:
    return Forward(
        Stack(attention=(_ATTENTION,), mlp=(_MLP,)),
        _HIDDEN,
        0,
        known_hardware("gb200"),
        precision_named("fp4"),
        IDEAL,
    )


def kv_read_us(kvp: int, tpa: int) -> float:
    """Microseconds in which a rank reads the KV of a layer."""
    layouts = Layouts.of([Layout(kvp=kvp, tpa=tpa, tpf=kvp * tpa)])
    _, memory_s, _, _ = _forward().score_slopes(_ATTENTION, layouts, 1.0)
    return memory_s * _BATCH * _CONTEXT * 1e6


def weight_read_us(tpa: int, tpf: int) -> float:
    """Microseconds for a layer: 2 H Q Hsz/TPA + 2 H ceil(K/TPA) Hsz + 3 H F/TPF weights."""
    kv_share = math.ceil(_ATTENTION.kv_heads / tpa) / _ATTENTION.kv_heads
    weights = (
        (_ATTENTION.query + _ATTENTION.output) / tpa
        + _ATTENTION.key_value * kv_share
        + _MLP.weights / tpf
    )
    hardware, precision = known_hardware("gb200"), precision_named("fp4")
    return weights * precision.attention.bytes / hardware.memory_bytes_per_s * 1e6


def pass_weight_read_us(kvp: int, tpa: int) -> float:
    """The same as a pass of our model times it, where the output projection is over all ranks."""
    layouts = Layouts.of([Layout(kvp=kvp, tpa=tpa, tpf=kvp * tpa)])
    batch = decoding(np.full(1, 1e-9), np.ones(()), np.zeros(()))
    parts = _forward().pass_times(layouts, batch, detailed=True).parts
    return float(np.sum(parts["projections", "memory"])) * 1e6


def _kv_checks() -> list[Check]:
    return [
        Check(f"KV read, KVP {kvp} x TPA {tpa}, µs", paper, kv_read_us(kvp, tpa), 1e-9)
        for (kvp, tpa), paper in _KV.items()
    ]


def _weight_checks() -> list[Check]:
    return [
        Check(f"weight read, TPA {tpa}, TPF {tpf}, µs", paper, weight_read_us(tpa, tpf), 2e-3)
        for (tpa, tpf), paper in (_WEIGHTS | _HELIX_WEIGHTS).items()
    ]


def _projection_checks() -> list[Check]:
    why = (
        "the paper's formula divides the output projection by TPA, its section 2.2 (and our pass) "
        "by all N ranks"
    )
    return [
        Check(
            f"weight read of our pass, KVP {tpf // tpa} x TPA {tpa}, µs",
            paper,
            pass_weight_read_us(tpf // tpa, tpa),
            1e-3,
            why,
            (0.75, 1.0),
        )
        for (tpa, tpf), paper in _HELIX_WEIGHTS.items()
    ]
