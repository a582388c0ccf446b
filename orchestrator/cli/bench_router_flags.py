"""The flags of `tandem bench router`: what each is called, takes and means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

Model: TypeAlias = Annotated[
    Path | None, typer.Option(help="Checkpoint folder; the shipped model if not given.")
]
Routers: TypeAlias = Annotated[int, typer.Option(min=1, help="Router processes.")]
Isl: TypeAlias = Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")]
Osl: TypeAlias = Annotated[int, typer.Option(min=2, help="Tokens of an answer.")]
StepMs: TypeAlias = Annotated[
    float, typer.Option(min=0.5, help="Time of a simulated decode step: the ITL.")
]
Concurrency: TypeAlias = Annotated[int, typer.Option(min=1, help="Requests at once that saturate.")]
Rps: TypeAlias = Annotated[
    float, typer.Option(help="Rate at which latency is taken, if saturation allows.")
]
Seconds: TypeAlias = Annotated[float, typer.Option(min=0.5, help="Of each phase.")]
OpenRequests: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Open at once to see what they take of memory.")
]
MemoryRequests: TypeAlias = Annotated[
    int,
    typer.Option(
        min=100,
        help="Short ones, to see whether memory grows; a million takes 15 to 30 minutes.",
    ),
]
Quick: TypeAlias = Annotated[bool, typer.Option("--quick", help="Only show that everything runs.")]
Engine: TypeAlias = Annotated[
    str, typer.Option(help="simulated, or vllm: beside vLLM's own server.")
]
VllmPython: TypeAlias = Annotated[
    Path, typer.Option(help="With --engine vllm: the Python that has it.")
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
