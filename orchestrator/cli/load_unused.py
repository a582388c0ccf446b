"""Flags of `tandem load` that would change nothing: refused, since whoever gave one meant it."""

from __future__ import annotations

from collections.abc import Collection

import typer

from loadgen.errors import LoadError

_OF_TRACES = {
    "form": "--format",
    "from_s": "--from-s",
    "to_s": "--to-s",
    "min_isl": "--min-isl",
    "max_isl": "--max-isl",
    "min_osl": "--min-osl",
    "max_osl": "--max-osl",
    "speedup": "--speedup",
    "scale": "--scale",
}
_WITHOUT_TRACE = {"isl": "--isl", "turns": "--turns"}
# Which arrivals a flag shapes.
PROCESSES_OF = {
    "to_rate": ("ramp", "step"),
    "period_s": ("ramp", "step", "diurnal"),
    "burstiness": ("gamma",),
    "swing": ("diurnal",),
}


def given_flags(context: typer.Context) -> frozenset[str]:
    """Names of the parameters that were given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(
        name
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    )


def refuse_unused(given: Collection[str], has_trace: bool, process: str) -> None:
    """Raises LoadError for a flag that has no effect with these arrivals or with this source."""
    if not has_trace:
        for name, flag in _OF_TRACES.items():
            if name in given:
                raise LoadError(f"{flag}: without a trace it changes nothing", "give --trace FILE")
    else:
        for name, flag in _WITHOUT_TRACE.items():
            if name in given:
                raise LoadError(
                    f"{flag}: a trace has its own; it would change nothing",
                    f"leave out {flag}, or --trace",
                )
    for name, processes in PROCESSES_OF.items():
        if name in given and process not in processes:
            flag, wanted = f"--{name.replace('_', '-')}", " or ".join(processes)
            raise LoadError(
                f"{flag}: changes nothing with arrivals of {process}",
                f"add --arrivals {wanted}, or leave out {flag}",
            )
