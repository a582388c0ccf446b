"""What goes wrong between ranks, named where no torch is needed to know it."""

from __future__ import annotations


class RanksLost(RuntimeError):
    """A collective failed or took too long: the group cannot go on."""
