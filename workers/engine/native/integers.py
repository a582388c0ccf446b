"""Makes the int64 tensors of one call together.

Exists because a decode step of a small model is as long as a few hundred numbers take to become
tensors one list at a time.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor


def integers(*parts: Sequence[int]) -> tuple[Tensor, ...]:
    """An int64 tensor [n] of each of the parts, which together hold one number at least."""
    numbers = array("q")
    for part in parts:
        numbers.extend(part)
    return torch.split(torch.frombuffer(numbers, dtype=torch.int64), [len(part) for part in parts])
