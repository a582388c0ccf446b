"""Least squares with coefficients that must not be negative."""

from __future__ import annotations

import numpy as np

from workers.perf.arrays import Floats

_SWEEPS = 400


def not_negative(matrix: Floats, target: Floats) -> Floats:
    """argmin |matrix x - target| with x >= 0, by cyclic coordinate descent (Franc, Hlavac and
    Navara, 2005)."""
    scale = np.sqrt(np.sum(matrix**2, axis=0))
    used = scale > 0.0
    columns = matrix[:, used] / scale[used]
    products = columns.T @ columns
    slope = -columns.T @ target
    values: Floats = np.zeros(columns.shape[1])
    for _ in range(_SWEEPS):
        for index in range(len(values)):
            moved = max(values[index] - slope[index] / products[index, index], 0.0)
            slope = slope + (moved - values[index]) * products[:, index]
            values[index] = moved
    result: Floats = np.zeros(matrix.shape[1])
    result[used] = values / scale[used]
    return result
