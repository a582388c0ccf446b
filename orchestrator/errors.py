"""Errors that a person at the command line can act on."""

from __future__ import annotations


class UserError(Exception):
    """Something failed in a way that needs no stack: what happened, and what to do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(UserError):
    """The command or the configuration asks for something that cannot be."""

    exit_code = 2
