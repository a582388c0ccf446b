"""Checks kernels through Triton's interpreter, one property for each name.

Run as a program of its own with TRITON_INTERPRET=1: whether kernels are interpreted or compiled is
fixed when Triton is first imported, and other tests import it (through transformers).
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import triton.language as tl
from hypothesis import Phase, given, settings
from numpy.typing import NDArray
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from tests.gpu import kernel_checks as checks
from tests.gpu import model_checks

# A failing example is tiny as it is, and looking for a tinier one takes minutes here.
few = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)


def _numbers(handle: TensorHandle) -> NDArray[np.float32]:
    """What the interpreter keeps of a tensor, as numbers: it keeps bfloat16 as its bits."""
    numbers: NDArray[np.float32] = handle.data
    if handle.dtype.scalar == tl.bfloat16:
        numbers = (handle.data.astype(np.uint32) << 16).view(np.float32)
    return numbers


def _product(
    self: InterpreterBuilder,
    left: TensorHandle,
    right: TensorHandle,
    start: TensorHandle,
    precision: object,
    most_imprecise: object,
) -> TensorHandle:
    """The interpreter's own multiplies the bits of bfloat16 as integers."""
    product = np.matmul(_numbers(left), _numbers(right), dtype=start.data.dtype)
    return TensorHandle(product + start.data, start.dtype.scalar)


@few
@given(case=checks.attention_cases(checks.TINY))
def paged_attention(case: checks.AttentionCase) -> None:
    checks.check_attention(case, "cpu")


@few
@given(case=checks.attention_cases(checks.TINY))
def combining_ranks(case: checks.AttentionCase) -> None:
    checks.check_combining_ranks(case, "cpu")


@few
@given(case=checks.scan_cases(checks.TINY))
def mamba_window(case: checks.ScanCase) -> None:
    checks.check_scan(case, "cpu")


@few
@given(case=checks.scan_cases(checks.TINY))
def windows_of_any_width(case: checks.ScanCase) -> None:
    checks.check_scan_does_not_depend_on_windows(case, "cpu")


@few
@given(case=checks.experts_cases(checks.TINY))
def latent_experts(case: checks.ExpertsCase) -> None:
    checks.check_experts(case, "cpu")


def whole_model() -> None:
    model_checks.check_windows_through_kernels("cpu", steps=3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    InterpreterBuilder.create_dot = _product
    for name in sys.argv[1:]:
        globals()[name]()
