"""Every failure of a command becomes one clear line, a suggestion and an exit status."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar

import typer

from orchestrator.cli.terminal import note
from orchestrator.errors import UserError

debug: ContextVar[bool] = ContextVar("debug", default=False)

_INTERRUPTED = 130


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with its failures told to a person; with --debug their stacks are shown."""

    @functools.wraps(command)
    def run(*args: object, **kwargs: object) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as error:
            raise typer.Exit(_INTERRUPTED) from error
        except BrokenPipeError as error:
            # Whoever read our output has gone; there is nobody left to tell.
            raise typer.Exit(1) from error
        except Exception as error:
            if debug.get():
                raise
            raise typer.Exit(_tell(error)) from error

    return run


def _tell(error: Exception) -> int:
    if isinstance(error, UserError):
        note(f"error: {error.message}")
        if error.hint:
            note(f"  {error.hint}")
        return error.exit_code
    note(f"error: {type(error).__name__}: {error}")
    note("  this is a fault of Tandem; `tandem --debug ...` shows where")
    return 1
