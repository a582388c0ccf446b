"""Matrix products with weights, in the quickest way that this machine has.

Exists because on CPU the way matters more than anything else in a step. In float32 oneDNN's kernels
take a third of the time of the default ones once a few rows share a matrix, and only from weights
that were laid out for them; a small matrix with few rows is quicker with our own kernel, whose call
is short. In bfloat16 our kernel is the quickest for everything where the processor multiplies pairs
of bfloat16 (AVX512_BF16); elsewhere it is as in float32. The default serves what is left: other
devices, training, tiny products without a compiler. oneDNN's operators are those that torch.compile
emits for the same product.
"""

from __future__ import annotations

import sys
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
# Where oneDNN has the quicker products, ours has the shorter call, or none of its own in a step
# that is a single call: for matrices of up to so many elements and rows.
_PANEL_ELEMENTS = 1_000_000
_PANEL_ROWS = 128


@dataclass(frozen=True, slots=True)
class Linear:
    """x W^T + bias for a weight [out, in] that stays the same.

    `panels` is a second copy in the layout of our own kernel, used for up to `panel_rows` rows,
    `packed` one in oneDNN's; both are None where products are left to PyTorch.
    """

    weight: Tensor
    bias: Tensor | None
    packed: Tensor | None
    panels: layers.Panels | None
    panel_rows: int

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """A product with this weight, laid out if it is on a CPU and not being trained."""
        packed = panels = None
        panel_rows = 0
        if not weight.requires_grad and weight.numel():
            every = calls.suits_all_products(weight)
            small = weight.numel() <= _PANEL_ELEMENTS and calls.enabled(weight)
            if (every or small) and layers.Panels.can_lay_out(weight):
                panels = layers.Panels(weight, bias)
                panel_rows = sys.maxsize if every else _PANEL_ROWS
            if _has_onednn(weight) and panel_rows != sys.maxsize:
                packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _LAYOUT_ROWS)
        return cls(weight, bias, packed, panels, panel_rows)

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return self._product(x, relu2=False)

    def squared_relu(self, x: Tensor) -> Tensor:
        """max(x W^T + bias, 0)^2: x [..., in] -> [..., out]."""
        return self._product(x, relu2=True)

    def scores(self, x: Tensor) -> Tensor:
        """The product in float32, as it is in the type of x: x [..., in] -> [..., out]."""
        panels = self.panels
        if panels is not None and self._suits_panels(x):
            return panels.scores(x)
        return self(x).float()

    @property
    def most_panel_rows(self) -> int:
        """Up to so many rows panels serve; further ones where oneDNN's call would not pay."""
        return max(self.panel_rows, (_PACKED_WORK - 1) // self.weight.numel())

    def _suits_panels(self, x: Tensor) -> bool:
        few = x.numel() <= self.panel_rows * x.shape[-1] or _work(x, self.weight) < _PACKED_WORK
        return few and calls.suits(x)

    def _product(self, x: Tensor, *, relu2: bool) -> Tensor:
        panels = self.panels
        if panels is not None and self._suits_panels(x):
            return panels(x, relu2=relu2)
        if self.packed is None or _work(x, self.weight) < _PACKED_WORK:
            out = functional.linear(x, self.weight, self.bias)
        else:
            out = _onednn(x, self.packed, self.bias)
        return squared_relu(out) if relu2 else out


def squared_relu(x: Tensor) -> Tensor:
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
