"""The one error a bad checkpoint raises.

Exists so that the server can tell "this folder cannot be served" (say why, exit) from a bug
(stack trace): every message names what was wrong, what was found and what to do.
"""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint folder, its config.json or one of its tensors cannot be used."""
