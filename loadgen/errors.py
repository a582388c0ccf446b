"""What a person can put right: a trace that cannot be read, a target that does not answer."""

from __future__ import annotations


class LoadError(Exception):
    """Names the field, its value and the problem; `hint` says what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
