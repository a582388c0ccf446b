"""What goes wrong when a model or a machine is described."""

from __future__ import annotations


class PerfError(ValueError):
    """A description that cannot be used; the message names the field, the value and the fix."""
