"""Keeps candidates that no other beats in everything that matters."""

from __future__ import annotations

import numpy as np

from workers.perf.arrays import Booleans, Floats, Integers


def frontier(cost: Floats, gain: Floats) -> Integers:
    """Indices of points for which no other has at most their cost and at least their gain.

    In order of rising cost, so of rising gain; of equal points the first stays.
    """
    order = np.lexsort((-gain, cost))
    ahead = np.maximum.accumulate(gain[order])
    better = np.ones(len(order), dtype=np.bool_)
    better[1:] = gain[order][1:] > ahead[:-1]
    return order[better]


def frontier_by_size(cost: Floats, gain: Floats, ranks: Integers) -> Integers:
    """The frontiers of each instance size, together: with few devices a small instance can beat a
    larger one that is better per device."""
    kept = [
        indices[frontier(cost[indices], gain[indices])]
        for size in np.unique(ranks)
        for indices in [np.nonzero(ranks == size)[0]]
    ]
    return np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)


def best_by_size(gain: Floats, ranks: Integers, allowed: Booleans) -> Integers:
    """For each instance size the index with the most gain among those where `allowed` is true."""
    kept = []
    for size in np.unique(ranks):
        indices = np.nonzero((ranks == size) & allowed)[0]
        if len(indices):
            kept.append(indices[np.argmax(gain[indices])])
    return np.array(kept, dtype=np.int64)
