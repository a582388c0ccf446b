"""Calls into the compiled kernels: pointers and sizes in, shown to the profiler as operations.

Exists so that whether there are kernels is decided once for a process (`enable`), as torch's
threads are, and that the modules beside it hold nothing but what their arguments mean.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor
from torch._C._profiler import _RecordFunctionFast
from torch.autograd import profiler

from workers.kernels.cpu import library

_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_KINDS: dict[str, type] = {"i": ctypes.c_int64, "p": ctypes.c_void_p, "d": ctypes.c_double}
# By name a letter for each argument: i integers, d doubles, p pointers to tensors or structures.
_SIGNATURES = {
    "add_norm": "iipppdp",
    "attend_pages": "piiipiip",
    "drafts": "ppppippp",
    "experts": "iiiippppppp",
    "experts_in_panels": "iiiiippppppp",
    "linear": "iiipppip",
    "mamba_sequence": "piidpppppppp",
    "mamba_windows": "ppiiipppp",
    "scores": "iiipppp",
    "square_relu": "ip",
    "verify": "ppppppp",
}
_FLOAT32_SIGNATURES = {
    "highest": "iipp",
    "open_pages": "ipppi",
    "plan_pages": "piiiipippppp",
    "route": "iiippidpp",
    "write_pages": "iiipppipiii",
}


class _Function:
    """One compiled function; a pointer is a tensor's `data_ptr()`, a structure's `byref`."""

    def __init__(self, compiled: ctypes.CDLL, name: str, dtype: str, signature: str) -> None:
        self._label = f"tandem::{name}"
        self._call = getattr(compiled, f"{name}_{dtype}")
        self._call.argtypes = [_KINDS[letter] for letter in signature]
        self._call.restype = None

    def __call__(self, *arguments: object) -> None:
        if profiler._is_profiler_enabled:
            with _RecordFunctionFast(self._label):
                self._call(*arguments)
        else:
            self._call(*arguments)


_whole: set[torch.dtype] = set()
_functions: dict[tuple[str, torch.dtype], _Function] = {}


def enable(cache: Path | None = None) -> bool:
    """Use compiled kernels in this process from here on, compiling them if need be.

    Args:
        cache: where compiled kernels are kept; None for the user's cache.

    Returns:
        Whether there are any; the log says why not.
    """
    if not _functions:
        compiled = library.load(cache)
        if compiled is not None:
            for dtype, called in _NAMES.items():
                for name, signature in _SIGNATURES.items():
                    _functions[name, dtype] = _Function(compiled, name, called, signature)
            for name, signature in _FLOAT32_SIGNATURES.items():
                _functions[name, torch.float32] = _Function(compiled, name, "float32", signature)
            _whole.update({torch.bfloat16} if compiled.multiplies_bfloat16() else ())
    return bool(_functions)


def disable() -> None:
    """Use PyTorch's own operations again."""
    _functions.clear()
    _whole.clear()


def enabled(tensor: Tensor) -> bool:
    """Whether there are kernels for a tensor of this type and place."""
    return bool(_functions) and tensor.is_cpu and tensor.dtype in _NAMES


def suits(tensor: Tensor) -> bool:
    """Whether kernels should do the work on this tensor; they have no gradients."""
    return (
        bool(_functions)
        and tensor.is_cpu
        and tensor.dtype in _NAMES
        and not torch.is_grad_enabled()
    )


def suits_all_products(tensor: Tensor) -> bool:
    """Whether the kernel for products is the quickest for any number of rows of this type."""
    return enabled(tensor) and tensor.dtype in _whole


def replaces(dtype: torch.dtype, beside: Tensor) -> bool:
    """As `suits`, for tensors of a type that are where `beside` is."""
    return bool(_functions) and dtype in _NAMES and beside.is_cpu and not torch.is_grad_enabled()


def function(name: str, dtype: torch.dtype) -> _Function:
    """The kernel for tensors of this type; only where `suits` holds."""
    return _functions[name, dtype]
