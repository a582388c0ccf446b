"""The flags of `tandem load`: what each is called, takes and means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

_REQUESTS, _MOMENTS, _TARGET, _REPORT = "Requests", "When they come", "Target", "Report"

Trace: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="A Mooncake, Azure, BurstGPT or AIBrix trace.", rich_help_panel=_REQUESTS),
]
Form: TypeAlias = Annotated[
    str,
    typer.Option(
        "--format",
        help="auto, mooncake, azure, burstgpt or aibrix.",
        rich_help_panel=_REQUESTS,
    ),
]
Limit: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="Only so many requests.", rich_help_panel=_REQUESTS),
]
FromS: TypeAlias = Annotated[
    float,
    typer.Option(min=0.0, help="Leave out the trace before.", rich_help_panel=_REQUESTS),
]
ToS: TypeAlias = Annotated[
    float | None,
    typer.Option(min=0.0, help="Leave out the trace after.", rich_help_panel=_REQUESTS),
]
MinIsl: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Leave out shorter prompts.", rich_help_panel=_REQUESTS)
]
MaxIsl: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="Leave out longer prompts.", rich_help_panel=_REQUESTS),
]
MinOsl: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Leave out shorter answers.", rich_help_panel=_REQUESTS)
]
MaxOsl: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="Leave out longer answers.", rich_help_panel=_REQUESTS),
]
Isl: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Without a trace: tokens of a prompt, 512 or 100-900.", rich_help_panel=_REQUESTS
    ),
]
Osl: TypeAlias = Annotated[
    str,
    typer.Option(help="Tokens of an answer, where no trace says.", rich_help_panel=_REQUESTS),
]
Turns: TypeAlias = Annotated[
    int,
    typer.Option(
        min=1,
        help="Without a trace: turns of a conversation, each with the answers before it.",
        rich_help_panel=_REQUESTS,
    ),
]
ThinkS: TypeAlias = Annotated[
    float,
    typer.Option(
        min=0.0, help="Between an answer and what a user says next.", rich_help_panel=_REQUESTS
    ),
]
Prompts: TypeAlias = Annotated[
    str,
    typer.Option(
        help="text, or random tokens, which flatter speculation.", rich_help_panel=_REQUESTS
    ),
]
Model: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Checkpoint folder whose tokenizer counts; the shipped model's if not given.",
        rich_help_panel=_REQUESTS,
    ),
]
Temperature: TypeAlias = Annotated[
    float, typer.Option(min=0.0, help="0 is greedy.", rich_help_panel=_REQUESTS)
]
IgnoreEos: TypeAlias = Annotated[
    bool,
    typer.Option(
        help="Answers of the wanted length, where the target can.", rich_help_panel=_REQUESTS
    ),
]
PriorityClass: TypeAlias = Annotated[
    str, typer.Option(help="Class of requests that name none.", rich_help_panel=_REQUESTS)
]
Arrivals: TypeAlias = Annotated[
    str,
    typer.Option(
        help="replay, poisson, gamma, constant, ramp, step or diurnal; replay of a trace, "
        "poisson with a rate.",
        rich_help_panel=_MOMENTS,
    ),
]
Rate: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--requests-per-s",
        "--rate",
        min=1e-6,
        help="Requests, or conversations, a second.",
        rich_help_panel=_MOMENTS,
    ),
]
ToRate: TypeAlias = Annotated[
    float | None,
    typer.Option(min=1e-6, help="Of a ramp or a step: its end.", rich_help_panel=_MOMENTS),
]
PeriodS: TypeAlias = Annotated[
    float | None,
    typer.Option(
        min=1e-3,
        help="What a ramp takes, what comes before a step, or a day of diurnal.",
        rich_help_panel=_MOMENTS,
    ),
]
Burstiness: TypeAlias = Annotated[
    float,
    typer.Option(
        min=1e-3,
        help="Shape of gamma gaps: 1 is Poisson, less is bursty.",
        rich_help_panel=_MOMENTS,
    ),
]
Swing: TypeAlias = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Of diurnal, up and down from its mean.",
        rich_help_panel=_MOMENTS,
    ),
]
Speedup: TypeAlias = Annotated[
    float,
    typer.Option(
        min=1e-6, help="The trace's arrivals so many times as fast.", rich_help_panel=_MOMENTS
    ),
]
Scale: TypeAlias = Annotated[
    float,
    typer.Option(min=1e-6, help="The trace's requests so many times.", rich_help_panel=_MOMENTS),
]
Users: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Closed loop: so many, one request at a time each.",
        rich_help_panel=_MOMENTS,
    ),
]
Seconds: TypeAlias = Annotated[
    float | None,
    typer.Option(min=0.1, help="Send no longer than this.", rich_help_panel=_MOMENTS),
]
Seed: TypeAlias = Annotated[int, typer.Option(help="Of what is drawn.", rich_help_panel=_MOMENTS)]
Target: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="grpc://HOST:PORT, or http://HOST:PORT of any OpenAI endpoint; the cluster that "
        "runs here if not given.",
        rich_help_panel=_TARGET,
    ),
]
Api: TypeAlias = Annotated[
    str, typer.Option(help="Over HTTP: completions or chat.", rich_help_panel=_TARGET)
]
ServedModel: TypeAlias = Annotated[
    str,
    typer.Option(help="Its name at the target, if several are.", rich_help_panel=_TARGET),
]
ApiKeyFile: TypeAlias = Annotated[
    Path | None, typer.Option(help="File with the API key.", rich_help_panel=_TARGET)
]
Ca: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Certificates to trust, PEM.", rich_help_panel=_TARGET),
]
TimeoutS: TypeAlias = Annotated[
    float,
    typer.Option(min=0.1, help="A longer answer has failed.", rich_help_panel=_TARGET),
]
TtftMs: TypeAlias = Annotated[
    float, typer.Option(min=0.001, help="Target of TTFT.", rich_help_panel=_REPORT)
]
ItlMs: TypeAlias = Annotated[
    float, typer.Option(min=0.001, help="Target of mean ITL.", rich_help_panel=_REPORT)
]
Gpus: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="That serve, for figures of each.", rich_help_panel=_REPORT),
]
Html: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Write a report with plots.", rich_help_panel=_REPORT),
]
AsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=_REPORT)
]
