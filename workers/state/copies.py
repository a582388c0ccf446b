"""Copies of bytes between two address spaces, joined into the fewest.

Exists because every descriptor of a transfer costs time on both ends, while blocks that lie next
to each other in both memories can travel as one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Copy:
    """`length_bytes` bytes at address `source` go to address `target` of the other memory."""

    source: int
    target: int
    length_bytes: int


def coalesce(copies: Iterable[Copy]) -> list[Copy]:
    """Join copies that are neighbours at both ends; the result is ordered by source address.

    The copies must not overlap and must stay inside one allocation on either side: two tensors
    may be neighbours by accident, and a descriptor must not reach from one into the other.
    """
    joined: list[Copy] = []
    for copy in sorted(copies, key=lambda copy: copy.source):
        if joined:
            last = joined[-1]
            if (
                last.source + last.length_bytes == copy.source
                and last.target + last.length_bytes == copy.target
            ):
                joined[-1] = Copy(last.source, last.target, last.length_bytes + copy.length_bytes)
                continue
        joined.append(copy)
    return joined
