"""Norms, products of few rows and experts, with the names and arguments that the model's have."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from workers.kernels.cpu.calls import function

if TYPE_CHECKING:  # modules that themselves import this one
    from workers.model.config import ModelConfig
    from workers.model.weights import MoeWeights

_PANEL = 64  # as in layers.cpp
_TOGETHER = {torch.float32: 1, torch.bfloat16: 2}


def add_norm(x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """x += added in place, unless that is None; the RMS norm of x [..., d], contiguous."""
    out = torch.empty_like(x)
    size = x.shape[-1]
    function("add_norm", x.dtype)(
        x.numel() // size,
        size,
        x.data_ptr(),
        None if added is None else added.contiguous().data_ptr(),
        weight.data_ptr(),
        eps,
        out.data_ptr(),
    )
    return out


class Product(ctypes.Structure):
    """`Product` of step.cpp: where a weight in panels and its bias are; null for none."""

    _fields_ = (
        ("panels", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("steps", ctypes.c_int64),
        ("count", ctypes.c_int64),
    )


class Panels:
    """x W^T + bias with a weight [out, in] laid out for it.

    In float32 the layout is [out / 64, in, 64], the last panel padded; in bfloat16 two inputs lie
    together: [out / 64, in / 2, 64, 2]. Calls are many and short, so all that they need of the
    weight is looked up once.
    """

    __slots__ = (
        "_bias",
        "_count",
        "_function",
        "_inputs",
        "_packed",
        "_pointers",
        "_scores",
        "_steps",
    )

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Lay out `weight`, for which `can_lay_out` holds."""
        together = _TOGETHER[weight.dtype]
        self._count, self._inputs = weight.shape
        padded = functional.pad(weight, (0, 0, 0, -self._count % _PANEL))
        self._steps = self._inputs // together
        split = padded.view(-1, _PANEL, self._steps, together)
        self._packed, self._bias = split.transpose(1, 2).contiguous(), bias
        self._pointers = self._packed.data_ptr(), None if bias is None else bias.data_ptr()
        self._function = function("linear", weight.dtype)
        self._scores = function("scores", weight.dtype)

    @property
    def product(self) -> Product:
        """What kernels are told of it; it holds as long as this is alive."""
        return Product(*self._pointers, self._steps, self._count)

    @staticmethod
    def can_lay_out(weight: Tensor) -> bool:
        """Whether there is a layout for a weight [out, in]."""
        together = _TOGETHER.get(weight.dtype)
        return together is not None and weight.shape[1] % together == 0

    def scores(self, x: Tensor) -> Tensor:
        """As x W^T + bias is in the type of x, in float32: x [..., in] -> [..., out]."""
        x = x.contiguous()
        out = torch.empty((*x.shape[:-1], self._count))
        packed, bias = self._pointers
        self._scores(
            x.numel() // self._inputs,
            self._steps,
            self._count,
            x.data_ptr(),
            packed,
            bias,
            out.data_ptr(),
        )
        return out

    def __call__(self, x: Tensor, *, relu2: bool) -> Tensor:
        """x [..., in] -> [..., out], then the squared ReLU if asked for."""
        x = x.contiguous()
        out = x.new_empty((*x.shape[:-1], self._count))
        packed, bias = self._pointers
        self._function(
            x.numel() // self._inputs,
            self._steps,
            self._count,
            x.data_ptr(),
            packed,
            bias,
            relu2,
            out.data_ptr(),
        )
        return out


def highest(scores: Tensor) -> Tensor:
    """Where the first of the highest float32 scores [..., n] is: int64 [...]."""
    scores = scores.contiguous()
    out = torch.empty(scores.shape[:-1], dtype=torch.int64)
    size = scores.shape[-1]
    function("highest", scores.dtype)(out.numel(), size, scores.data_ptr(), out.data_ptr())
    return out


def square_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2 in place; x is contiguous."""
    function("square_relu", x.dtype)(x.numel(), x.data_ptr())
    return x


def route(logits: Tensor, weights: MoeWeights, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Experts of each token from the router's float32 logits [t, E], without expert groups.

    Returns:
        Indices int64 [t, k] and weights float32 [t, k].
    """
    tokens, count = logits.shape
    chosen = config.num_experts_per_tok
    indices = torch.empty(tokens, chosen, dtype=torch.int64)
    scale = torch.empty(tokens, chosen)
    function("route", torch.float32)(
        tokens,
        count,
        chosen,
        logits.data_ptr(),
        weights.correction_bias.data_ptr(),
        config.norm_topk_prob,
        config.routed_scaling_factor,
        indices.data_ptr(),
        scale.data_ptr(),
    )
    return indices, scale


def expert_panels(weights: MoeWeights) -> tuple[Product, Product] | None:
    """All experts' matrices in panels, where each expert has panels of its own; else None."""
    up, down = weights.all_up.panels, weights.all_down.panels
    if up is None or down is None or weights.expert_up.shape[1] % _PANEL:
        return None
    return up.product, down.product


def experts(x: Tensor, indices: Tensor, scale: Tensor, weights: MoeWeights) -> Tensor:
    """The chosen experts of each token of x [t, l], one token and expert at a time: [t, l]."""
    x = x.contiguous()
    tokens, chosen = indices.shape
    count, size, narrow = weights.expert_up.shape
    out = torch.empty_like(x)
    parts = torch.empty(tokens, chosen, -(-narrow // _PANEL) * _PANEL)
    given = x.data_ptr(), indices.data_ptr(), scale.data_ptr()
    made = parts.data_ptr(), out.data_ptr()
    shape = tokens, chosen, narrow, size
    if (panels := expert_panels(weights)) is not None:
        up, down = panels
        function("experts_in_panels", x.dtype)(*shape, count, *given, up.panels, down.panels, *made)
    else:
        matrices = weights.expert_up.data_ptr(), weights.expert_down.data_ptr()
        function("experts", x.dtype)(*shape, *given, *matrices, *made)
    return out
