"""The flags of `tandem simulate`: what each is called, takes and means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

Trace: TypeAlias = Annotated[
    Path, typer.Option(help="Requests: a Mooncake, Azure or BurstGPT trace.")
]
ClusterFile: TypeAlias = Annotated[
    Path, typer.Option(help="cluster.yaml, or plan.json from `tandem plan --json`.")
]
Form: TypeAlias = Annotated[
    str, typer.Option("--format", help="auto, mooncake, azure or burstgpt.")
]
Model: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Built-in model or folder with a config.json; that of --cluster."),
]
Hardware: TypeAlias = Annotated[
    str | None, typer.Option(help="h100, h200, b200 or gb200; that of a plan.")
]
Precision: TypeAlias = Annotated[str, typer.Option(help="As in `tandem plan`.")]
ProfileFile: TypeAlias = Annotated[
    Path | None, typer.Option(help="What `tandem calibrate` measured.")
]
Rate: TypeAlias = Annotated[
    float | None,
    typer.Option(min=1e-6, help="Poisson arrivals at this rate instead of the trace's."),
]
Speedup: TypeAlias = Annotated[
    float, typer.Option(min=1e-6, help="The trace's arrivals so many times as fast.")
]
Limit: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Only so many requests.")]
Seed: TypeAlias = Annotated[int, typer.Option(help="Of what is drawn.")]
ScenarioFile: TypeAlias = Annotated[
    Path | None, typer.Option(help="Deaths, drains, flips and so on at given moments.")
]
Gpus: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="That workers can start on; more workers wait (Pending)."),
]
ColdStart: TypeAlias = Annotated[float, typer.Option(min=0.0, help="Of a worker.")]
PrefixCache: TypeAlias = Annotated[
    bool, typer.Option(help="Cache prefixes, where the trace names them.")
]
StepTokens: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Most tokens of one engine step.")
]
Acceptance: TypeAlias = Annotated[
    float | None,
    typer.Option(min=1.0, help="Acceptance length at the decode.draft_tokens of a YAML file."),
]
QueueLimit: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Requests that may wait in the router.")
]
Patience: TypeAlias = Annotated[
    float,
    typer.Option(min=0.0, help="Shed what would wait more than so many TTFT targets."),
]
EveryToken: TypeAlias = Annotated[
    bool,
    typer.Option("--every-token", help="Step by step, as a check of the closed forms; slow."),
]
EventLog: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Record what the core was told, for `python -m router.replay`."),
]
PolicyName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="Autoscaling: tandem, ray-default, per-role, threshold, static-best or oracle.",
    ),
]
Html: TypeAlias = Annotated[Path | None, typer.Option(help="Write a report with plots.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
