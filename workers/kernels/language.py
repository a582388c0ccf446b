"""Triton's compiler behind types.

Exists because Triton is untyped: the decorator here is the only way that a function becomes a
kernel, so a launch is checked for its form, and a missing Triton is reported in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import triton

Argument = object  # a tensor, a number, or a compile-time constant


class Launch(Protocol):
    """A kernel on a grid, ready for its arguments."""

    def __call__(self, *args: Argument, **options: Argument) -> object:
        """Queue the kernel on the current stream."""


class Kernel(Protocol):
    """A compiled function: `kernel[grid](arguments, num_warps=4)`."""

    def __getitem__(self, grid: tuple[int, ...]) -> Launch:
        """Choose how many programs run."""


def kernel(function: Callable[..., None]) -> Kernel:
    """Make a kernel of a function in Triton's language; it is compiled when it is first run."""
    return cast(Kernel, triton.jit(function))


def power_of_two(value: int) -> int:
    """The smallest power of two that is not below `value`: tiles have no other sizes."""
    return 1 << max(value - 1, 0).bit_length()


def blocks(size: int, block: int) -> int:
    """How many blocks cover `size`."""
    return -(-size // block)
