"""Copies of bytes between two address spaces, joined into the fewest.

Exists because every descriptor of a transfer costs time on both ends, while blocks that lie next
to each other in both memories can travel as one. Arrays, because a long prompt has thousands.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

# One row for each copy: source address, target address, length in bytes.
Copies = NDArray[np.uint64]

SOURCE: Final = 0
TARGET: Final = 1
LENGTH: Final = 2


def make_copies(
    sources: NDArray[np.uint64], targets: NDArray[np.uint64], length_bytes: int
) -> Copies:
    """Copies of equal length, from each source to the target at the same place."""
    lengths = np.full(len(sources), length_bytes, dtype=np.uint64)
    return np.stack((sources, targets, lengths), axis=1)


def coalesce(copies: Copies) -> Copies:
    """Join copies that are neighbours at both ends; the result is ordered by source address.

    The copies must not overlap and must stay inside one allocation on either side: two tensors
    may be neighbours by accident, and a descriptor must not reach from one into the other.
    """
    if len(copies) == 0:
        return copies
    ordered = copies[np.argsort(copies[:, SOURCE])]
    ends = ordered[:-1, :LENGTH] + ordered[:-1, LENGTH:]
    continues = (ends == ordered[1:, :LENGTH]).all(axis=1)
    firsts = np.flatnonzero(np.concatenate(([True], ~continues)))
    joined = ordered[firsts]
    joined[:, LENGTH] = np.add.reduceat(ordered[:, LENGTH], firsts)
    return joined
