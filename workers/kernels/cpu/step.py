"""A window of all layers of a model in one call, and all drafts of a step in one.

Exists because a step of a small model is bound by calls: its kernels take microseconds each, and
preparing a call in Python takes as long. What never changes of a model is described once; a call
brings the tensors of one step.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.kernels.cpu.calls import function
from workers.kernels.cpu.layers import Product
from workers.kernels.cpu.mamba import MambaLayer, Slots, describe_slots

if TYPE_CHECKING:  # modules that themselves import this one
    from workers.model.state_tensors import StateTensors


def _integers(*names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, ctypes.c_int64) for name in names)


def _pointers(*names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, ctypes.c_void_p) for name in names)


def _products(*names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, Product) for name in names)


class Layer(ctypes.Structure):
    """`Layer` of step.cpp: where the weights of a layer are; what it has not is null."""

    _fields_ = (
        *_integers("kind", "index"),
        *_pointers("norm"),
        *_products("inward", "outward"),
        ("mamba", ctypes.POINTER(MambaLayer)),
        *_products("gate", "narrow", "widen"),
        *_pointers("correction", "expert_up", "expert_down"),
        *_integers("in_panels"),
    )


class Model(ctypes.Structure):
    """`Model` of step.cpp: the layers and their shape."""

    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        *_pointers("final_norm"),
        *_integers("count", "size", "widest"),
        *_integers("heads", "kv_heads", "head_dim"),
        *_integers("experts", "chosen", "latent", "hidden", "normalised"),
        ("scaling", ctypes.c_double),
        ("eps", ctypes.c_double),
    )


class Drafting(ctypes.Structure):
    """`Drafting` of step.cpp: what drafts need beside the layers of their block."""

    _fields_ = (
        *_pointers("embeddings", "embedding_norm", "hidden_norm"),
        *_products("combine", "score"),
    )


class _Paged(ctypes.Structure):
    """`Paged` of step.cpp."""

    _fields_ = (*_pointers("memory"), *_integers("block_tokens", "block", "layer", "plane", "head"))

    @classmethod
    def of(cls, kv: Tensor) -> _Paged:
        memory = kv.data_ptr() if kv.numel() else None
        return cls(memory, kv.shape[4], *kv.stride()[:4])


class _Batch(ctypes.Structure):
    """`Batch` of step.cpp."""

    _fields_ = (
        *_integers("rows", "width", "most"),
        *_pointers("tables", "context", "counts", "slots", "pending"),
    )


@dataclass(frozen=True, slots=True)
class DescribedState:
    """Where the state of all requests is; it holds as long as the tensors are alive."""

    slots: Slots
    kv: _Paged
    draft_kv: _Paged

    @classmethod
    def of(cls, state: StateTensors) -> DescribedState:
        """Describe tensors that stay where they are."""
        return cls(describe_slots(state), _Paged.of(state.kv), _Paged.of(state.draft_kv))


def verify(
    model: Model,
    x: Tensor,
    state: DescribedState,
    slots: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    pending: Tensor,
) -> Tensor:
    """All layers and the final norm: x [b, w, d], the embeddings of windows, is overwritten.

    Arguments as those of `HybridModel.verify`, which says what becomes of the state.
    """
    out = torch.empty_like(x)
    tables, context, *kept = (
        each.contiguous() for each in (block_tables, context_lens, slots, pending)
    )
    batch = _Batch(
        *x.shape[:2],
        tables.shape[1],
        tables.data_ptr(),
        context.data_ptr(),
        None,
        *(each.data_ptr() for each in kept),
    )
    function("verify", x.dtype)(
        ctypes.byref(model),
        ctypes.byref(batch),
        ctypes.byref(state.slots),
        ctypes.byref(state.kv),
        ctypes.byref(state.draft_kv),
        x.data_ptr(),
        out.data_ptr(),
    )
    return out


def drafts(
    model: Model,
    drafting: Drafting,
    embedding: Tensor,
    hidden: Tensor,
    state: DescribedState,
    block_tables: Tensor,
    context_lens: Tensor,
    counts: Tensor,
    count: int,
) -> Tensor:
    """`count` drafts of each request, int64 [b, count].

    Args:
        model: the layers of the MTP block, one of which attends.
        drafting: what is around them.
        embedding: [b, w, d], of the tokens after the positions of `hidden`.
        hidden: as in `HybridModel.drafts`, like what follows.
        state: its draft_kv is written.
        block_tables: int64 [b, max_blocks].
        context_lens: int64 [b].
        counts: int64 [b].
        count: how many.
    """
    embedding, hidden = embedding.contiguous(), hidden.contiguous()
    out = torch.empty(len(hidden), count, dtype=torch.int64)
    kept = [each.contiguous() for each in (block_tables, context_lens, counts)]
    batch = _Batch(
        *hidden.shape[:2],
        block_tables.shape[1],
        *(each.data_ptr() for each in kept),
        None,
        None,
    )
    function("drafts", hidden.dtype)(
        ctypes.byref(model),
        ctypes.byref(drafting),
        ctypes.byref(batch),
        ctypes.byref(state.draft_kv),
        count,
        embedding.data_ptr(),
        hidden.data_ptr(),
        out.data_ptr(),
    )
    return out
