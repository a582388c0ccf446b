"""The random number behind each token: a function of the request's seed and the output index.

No generator with a state, so batches, draft lengths, workers and restarts do not change what is
drawn, and a draft can be checked against the very token that would have been drawn without it.
"""

from __future__ import annotations

_MASK_64 = (1 << 64) - 1


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on `seed` and `index` only.

    SplitMix64 (Steele, Lea and Flood, 2014) over both, so that neighbouring indexes and
    neighbouring seeds are unrelated.
    """
    mixed = _splitmix64(_splitmix64(seed & _MASK_64) ^ (index & _MASK_64))
    return (mixed >> 11) * 2.0**-53


def _splitmix64(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)
