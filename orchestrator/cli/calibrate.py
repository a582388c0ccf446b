"""`tandem calibrate`: measure this machine, so that plans predict it and say how well."""

from __future__ import annotations

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
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")] = False,
) -> None:
    """Measure the native engine on this machine and fit how well it uses the processor."""
    import json

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
    if dtype not in ("float32", "bfloat16"):
        raise UsageError(f"--dtype {dtype}: must be float32 or bfloat16")
    try:
        spec = find_model(str(folder))
    except PerfError as error:
        raise UsageError(str(error)) from error
    kept = torch.float32 if dtype == "float32" else torch.bfloat16
    with progress() as report:
        report("measuring the processor")
        hardware = measure_cpu(threads, kept)
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
    found = fit(spec, hardware, precision, measurements, name)
    values = [one.values() for one in measurements]
    text = profile_text(Profile(hardware, found.efficiency), values)
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be written: {error}") from error
    note(f"wrote {output}")
    if as_json:
        print_json(json.loads(text))
        return
    off = abs(found.errors)
    print(
        f"{len(measurements)} steps of {spec.name}; predictions are off by {off.mean():.0%} on "
        f"average and {off.max():.0%} at most on steps left out of the fit"
    )
    print(f"use it with: tandem plan --model {folder} --profile {output} --gpus 2 ...")
