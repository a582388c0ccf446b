"""Matrix products with weights, in the quickest way that this machine has.

Exists because on CPU the way matters more than anything else in a step: oneDNN's kernels take a
third of the time of the default ones once a few rows share a matrix (AVX-512, float32 and
bfloat16), and only from weights that were laid out for them. A product of one row with a small
matrix stays with the default, whose calls are shorter. The operators are those that torch.compile
emits for the same product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workers.kernels.cpu import calls, layers

_ONEDNN = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
# Multiply-adds from which oneDNN's longer call pays, with a laid-out matrix and with a plain one.
_PACKED_WORK = 500_000
_PLAIN_WORK = 2_000_000
# The layout is chosen for a number of rows; this one suits 2 to 128.
_LAYOUT_ROWS = 32
# Our own kernel has the shortest call: for matrices of up to so many elements, up to so many rows.
_PANEL_ELEMENTS = 1_000_000
_PANEL_ROWS = 16


@dataclass(frozen=True, slots=True)
class Linear:
    """x W^T + bias for a weight [out, in] that stays the same.

    `packed` is a second copy in oneDNN's layout; None where products are left to PyTorch (on a
    GPU, in training). `panels` is one in the layout of our own kernel, for small matrices only.
    """

    weight: Tensor
    bias: Tensor | None
    packed: Tensor | None
    panels: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """A product with this weight, laid out if it is on a CPU and not being trained."""
        packed = panels = None
        if _has_onednn(weight) and not weight.requires_grad:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _LAYOUT_ROWS)
        small = 0 < weight.numel() <= _PANEL_ELEMENTS
        if small and calls.enabled(weight) and not weight.requires_grad:
            panels = layers.panels(weight) if layers.suits_panels(weight) else None
        return cls(weight, bias, packed, panels)

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        if self.panels is not None and self._has_few_rows(x):
            return layers.linear(x, self.panels, len(self.weight), self.bias, relu2=False)
        return self._product(x)

    def squared_relu(self, x: Tensor) -> Tensor:
        """max(x W^T + bias, 0)^2: x [..., in] -> [..., out]."""
        if self.panels is not None and self._has_few_rows(x):
            return layers.linear(x, self.panels, len(self.weight), self.bias, relu2=True)
        return relu2(self._product(x))

    def _has_few_rows(self, x: Tensor) -> bool:
        return x.numel() <= _PANEL_ROWS * x.shape[-1] and calls.suits(x)

    def _product(self, x: Tensor) -> Tensor:
        if self.packed is None or _work(x, self.weight) < _PACKED_WORK:
            return functional.linear(x, self.weight, self.bias)
        return _onednn(x, self.packed, self.bias)


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2, the activation of every MLP and expert in the model; x is overwritten."""
    if calls.suits(x) and x.is_contiguous():
        return layers.square_relu(x)
    return functional.relu(x, inplace=True).square()


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T for a weight [out, in] of which no second copy is kept; no gradients."""
    if _work(x, weight) < _PLAIN_WORK or not _has_onednn(weight) or torch.is_grad_enabled():
        return functional.linear(x, weight)
    return _onednn(x, weight, None)


def _work(x: Tensor, weight: Tensor) -> int:
    return x.numel() * weight.shape[0]


def _has_onednn(weight: Tensor) -> bool:
    return (
        weight.is_cpu
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.numel() > 0
        and _ONEDNN
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    assert isinstance(out, Tensor)
    return out
