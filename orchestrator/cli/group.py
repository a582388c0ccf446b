"""The root command: every failure becomes one clear line, a suggestion and an exit status."""

from __future__ import annotations

import click
import typer
import typer.core

from orchestrator.cli.terminal import note
from orchestrator.errors import UserError

_INTERRUPTED = 130


class TandemGroup(typer.core.TyperGroup):
    """Runs a command; stacks are shown with --debug only."""

    def invoke(self, ctx: click.Context) -> object:
        debug = bool(ctx.params.get("debug"))
        try:
            return super().invoke(ctx)
        except UserError as error:
            if debug:
                raise
            note(f"error: {error.message}")
            if error.hint:
                note(f"  {error.hint}")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(_INTERRUPTED) from error
        except (click.exceptions.ClickException, click.exceptions.Exit, click.exceptions.Abort):
            raise
        except BrokenPipeError as error:
            # Whoever read our output has gone; there is nobody left to tell.
            raise typer.Exit(1) from error
        except Exception as error:
            if debug:
                raise
            note(f"error: {type(error).__name__}: {error}")
            note("  this is a fault of Tandem; `tandem --debug ...` shows where")
            raise typer.Exit(1) from error
