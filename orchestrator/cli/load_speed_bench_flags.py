"""The flags of `tandem load speed-bench`: what each is called, takes and means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

Data: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Prepared parquet of nvidia/SPEED-Bench, a folder of them, or JSON lines; a small "
        "sample of our own if not given."
    ),
]
Config: TypeAlias = Annotated[
    str, typer.Option(help="Of a folder: qualitative, throughput_1k and so on.")
]
Categories: TypeAlias = Annotated[
    str, typer.Option(help="Only these, with commas between; all if not given.")
]
PerCategory: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Only so many questions of each category.")
]
Osl: TypeAlias = Annotated[int, typer.Option(min=2, help="Most tokens of an answer.")]
Concurrency: TypeAlias = Annotated[int, typer.Option(min=1, help="Questions at once.")]
Temperature: TypeAlias = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
Baseline: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Report (--json) of the same run without drafts, for the speedup."),
]
Model: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Folder of the tokenizer that counts, where the target does not."),
]
Target: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="http://HOST:PORT of Tandem or any OpenAI endpoint; the cluster that runs here if "
        "not given."
    ),
]
ServedModel: TypeAlias = Annotated[str, typer.Option(help="Its name at the target.")]
ApiKeyFile: TypeAlias = Annotated[Path | None, typer.Option(help="File with the API key.")]
Ca: TypeAlias = Annotated[Path | None, typer.Option(help="Certificates to trust, PEM.")]
TimeoutS: TypeAlias = Annotated[float, typer.Option(min=0.1, help="A longer answer has failed.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
