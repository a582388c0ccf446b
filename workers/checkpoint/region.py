"""Parts of a tensor as spans of its dimensions, and the boxes that read them.

Exists so that what a rank holds of a weight (`shard`), what it reads of files and where it puts
that (`reading`) are arithmetic on numbers, testable without a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

Span = tuple[int, int]  # begin, end of a run of indices
Spans = tuple[Span, ...]  # runs of one dimension, in the order in which they are kept
Box = tuple[Span, ...]  # one run of each dimension


def joined(*parts: Spans) -> Spans:
    """Spans after one another, neighbours merged and empty ones left out."""
    merged: list[Span] = []
    for begin, end in (span for part in parts for span in part):
        if merged and merged[-1][1] == begin:
            merged[-1] = (merged[-1][0], end)
        elif begin < end:
            merged.append((begin, end))
    return tuple(merged)


def shifted(spans: Spans, offset: int, scale: int = 1) -> Spans:
    """Spans of groups of `scale` indices that begin at `offset`."""
    return tuple((offset + begin * scale, offset + end * scale) for begin, end in spans)


def length(spans: Spans) -> int:
    """Indices in all spans together."""
    return sum(end - begin for begin, end in spans)


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a tensor that is kept: the product of the spans of its dimensions."""

    dimensions: tuple[Spans, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Region:
        """All of a tensor."""
        return cls(tuple(((0, size),) for size in shape))

    def replace(self, dimension: int, spans: Spans) -> Region:
        """The same with other spans in one dimension."""
        kept = self.dimensions
        return Region((*kept[:dimension], spans, *kept[dimension + 1 :]))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is kept."""
        return tuple(length(spans) for spans in self.dimensions)

    def boxes(self) -> Iterator[tuple[Box, Box]]:
        """(where a box lies in the whole tensor, where it goes in what is kept), for each box."""
        for pairs in product(*(tuple(_placed(spans)) for spans in self.dimensions)):
            yield tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)


def box_items(box: Box) -> int:
    """Elements in a box."""
    return prod(end - begin for begin, end in box)


def box_slices(box: Box) -> tuple[slice, ...]:
    """A box as an index."""
    return tuple(slice(begin, end) for begin, end in box)


def _placed(spans: Spans) -> Iterator[tuple[Span, Span]]:
    at = 0
    for begin, end in spans:
        yield (begin, end), (at, at + end - begin)
        at += end - begin
