"""The `tandem` command: one function for each subcommand, put together here."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from orchestrator.cli.batch import batch
from orchestrator.cli.bench import bench
from orchestrator.cli.calibrate import calibrate
from orchestrator.cli.demo import demo
from orchestrator.cli.down import down
from orchestrator.cli.drain import drain
from orchestrator.cli.failures import debug as debug_setting
from orchestrator.cli.failures import reported
from orchestrator.cli.flip import flip
from orchestrator.cli.generate import generate
from orchestrator.cli.load import app as load
from orchestrator.cli.operator import operator
from orchestrator.cli.plan import plan
from orchestrator.cli.scale import scale
from orchestrator.cli.simulate import simulate
from orchestrator.cli.status import status
from orchestrator.cli.up import up
from orchestrator.cli.why import why

app = typer.Typer(
    name="tandem",
    help="Serve one model from a prefill pool and a decode pool.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("tandem-serve"))
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the stack of a failure.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    debug_setting.set(debug)


for _command in (
    up,
    down,
    status,
    why,
    drain,
    flip,
    scale,
    generate,
    batch,
    demo,
    plan,
    simulate,
    calibrate,
):
    app.command()(reported(_command))
app.add_typer(load)
app.add_typer(bench)
app.add_typer(operator)


def main() -> None:
    # gRPC's core writes of every connection that fails; commands say it in their own words.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    app()


if __name__ == "__main__":
    main()
