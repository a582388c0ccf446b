"""`tandem calibrate`: measure this machine, so that plans predict it and say how well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.terminal import note, print_json, progress
from orchestrator.errors import UsageError

_DRAFT_TOKENS = 3


def calibrate(
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; the shipped model if not given.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where the profile goes.")] = Path(
        "tandem-profile.json"
    ),
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Of the engine.")] = 1,
    aiconfigurator: Annotated[
        list[Path] | None,
        typer.Option(
            help="Read tables that AIConfigurator published instead of measuring: .parquet files, "
            "or folders of them."
        ),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="What those tables are of: h100, h200, b200 or gb200.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")] = False,
) -> None:
    """Fit how well software uses a machine: by measuring this one, or from published tables."""
    if dtype not in ("float32", "bfloat16"):
        raise UsageError(f"--dtype {dtype}: must be float32 or bfloat16")
    if aiconfigurator:
        text, summary = _from_tables(aiconfigurator, hardware)
    else:
        if hardware is not None:
            raise UsageError(
                f"--hardware {hardware}: only with --aiconfigurator; this machine is measured"
            )
        text, summary = _measured(model, dtype, threads)
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be written: {error}") from error
    note(f"wrote {output}")
    if as_json:
        print_json(json.loads(text))
        return
    print(summary)
    print(f"use it with: tandem plan --profile {output} --model ... --gpus N ...")


def _from_tables(paths: Sequence[Path], hardware: str | None) -> tuple[str, str]:
    """The profile, and what to say of it."""
    from orchestrator.calibration.table_fit import fit_tables
    from orchestrator.calibration.tables import read_tables
    from orchestrator.planner.profile import profile_text
    from workers.perf.errors import PerfError
    from workers.perf.hardware import known_hardware

    if hardware is None:
        raise UsageError("--aiconfigurator: say what the tables are of with --hardware")
    try:
        found = fit_tables(read_tables(paths), known_hardware(hardware))
    except PerfError as error:
        raise UsageError(f"--aiconfigurator: {error}") from error
    errors = ", ".join(f"{name} {error:.0%}" for name, error in found.errors.items())
    return (
        profile_text(found.profile),
        f"fitted; single operations are off by, on average over rows left out: {errors}",
    )


def _measured(model: Path | None, dtype: str, threads: int) -> tuple[str, str]:
    """The profile of this machine, and what to say of it."""
    import torch

    from orchestrator.calibration.fit import fit
    from orchestrator.calibration.machine import measure_cpu
    from orchestrator.calibration.measure import Subject, measure
    from orchestrator.planner.asking import find_model
    from orchestrator.planner.profile import Profile, profile_text
    from orchestrator.spec import ModelSpec as ModelSection
    from orchestrator.spec.loading import find_model as checkpoint_folder
    from workers.perf.errors import PerfError
    from workers.perf.precision import precision_named

    folder = checkpoint_folder(ModelSection().path if model is None else str(model), Path.cwd())
    try:
        spec = find_model(str(folder))
    except PerfError as error:
        raise UsageError(str(error)) from error
    kept = torch.float32 if dtype == "float32" else torch.bfloat16
    with progress() as report:
        report("measuring the processor")
        machine = measure_cpu(threads, kept)
        subject = Subject(
            model=folder,
            dtype="float32" if dtype == "float32" else "bfloat16",
            threads=threads,
            drafts=_DRAFT_TOKENS if spec.draft is not None else 0,
            vocab_size=spec.vocab,
        )
        measurements = measure(subject, report)
    precision = precision_named("fp32" if dtype == "float32" else "bf16")
    name = f"tandem calibrate ({spec.name}, {threads} threads)"
    found = fit(spec, machine, precision, measurements, name)
    values = [one.values() for one in measurements]
    off = abs(found.errors)
    return (
        profile_text(Profile(machine, found.efficiency), values),
        f"{len(measurements)} steps of {spec.name}; predictions are off by {off.mean():.0%} on "
        f"average and {off.max():.0%} at most on steps left out of the fit",
    )
