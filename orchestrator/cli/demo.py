"""`tandem demo`: a cluster comes up, answers a few prompts, shows what it did, and goes."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.signals import StopSignals
from orchestrator.cli.terminal import progress
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.client import Client
    from protos.tandem.v1 import inference_pb2

_LONG = (
    "A module is a file containing Python definitions and statements. The file name is the "
    "module name with the suffix .py appended. Within a module, the name of the module is "
    "available as the value of a global variable. Each module has its own namespace, which is "
    "used as the global namespace by all functions defined in the module. Thus, the author of a "
    "module can use global variables in the module without worrying about accidental clashes. "
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request of the demo."""

    title: str
    text: str
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0


PROMPTS = (
    Prompt("a short prompt", "The Python programming language is", 48),
    Prompt("the start of a definition", "This function returns a list of", 48),
    Prompt("a long prompt", _LONG * 6, 48),
    Prompt("sampled, seed 7", "If the file does not exist,", 48, temperature=0.8, seed=7),
    Prompt("one word", "The", 32),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one prompt."""

    prompt: Prompt
    finished: inference_pb2.Finished

    @property
    def moved_bytes(self) -> int:
        moved = self.finished.report.handoff
        return moved.kv_bytes + moved.mamba_bytes + moved.mtp_bytes


def demo(
    model: Annotated[
        str | None, typer.Option(help="Checkpoint folder; the shipped model if not given.")
    ] = None,
) -> None:
    """Start a cluster, answer prompts, print the report, stop everything."""
    from orchestrator.runtime.child import Interrupted
    from orchestrator.runtime.cluster import LocalCluster
    from orchestrator.spec import load_spec

    # Any free port: a demo must run beside whatever else this machine does.
    overrides: dict[str, object] = {"router.grpc": "127.0.0.1:0", "router.http": "127.0.0.1:0"}
    if model is not None:
        overrides["model.path"] = model
    cluster = LocalCluster(load_spec(None, overrides, {"model.path": "--model"}))
    began = time.monotonic()
    answers: list[Answer] = []
    with StopSignals() as signals:
        try:
            with progress() as report:
                endpoints = cluster.start(report, signals.requested)
            print(
                f"Up in {time.monotonic() - began:.1f} s: Valkey, Ray Serve, one prefill worker, "
                f"one decode worker, and the router on {endpoints.grpc}\n",
                flush=True,
            )
            from orchestrator.client import Client

            with Client(endpoints.grpc) as client:
                for prompt in PROMPTS:
                    if signals.requested():
                        raise Interrupted
                    answers.append(_ask(client, prompt))
            _print_summary(answers)
        except Interrupted:
            print("interrupted", flush=True)
        finally:
            with progress() as report:
                stopped = cluster.stop(report)
            from orchestrator.cli.up import stop_summary

            if stopped.processes:
                print(stop_summary(stopped), flush=True)
    if stopped.left_behind:
        raise UserError("the demo left processes behind")
    if len(answers) < len(PROMPTS):
        raise typer.Exit(130)
    if not all(answer.moved_bytes > 0 for answer in answers):
        raise UserError("no state was moved by NIXL: prefill and decode were not disaggregated")


def _ask(client: Client, prompt: Prompt) -> Answer:
    """Send one prompt, show its text as it streams, then where the time went."""
    from orchestrator.answers import report_line
    from protos.tandem.v1 import inference_pb2

    shown = prompt.text if len(prompt.text) <= 60 else f"{prompt.text[:60]}..."
    print(f"[{prompt.title}] {shown}", flush=True)
    sys.stdout.write("  > ")
    request = inference_pb2.GenerateRequest(
        text=prompt.text,
        sampling=inference_pb2.ClientSampling(
            max_tokens=prompt.max_tokens,
            temperature=prompt.temperature,
            seed=prompt.seed,
            ignore_eos=True,
        ),
    )
    finished: inference_pb2.Finished | None = None
    for response in client.generate(request):
        if response.WhichOneof("event") == "finished":
            finished = response.finished
        else:
            sys.stdout.write(response.delta.text.replace("\n", "\n    "))
            sys.stdout.flush()
    print()
    if finished is None:
        raise UserError(f"the answer to {prompt.title!r} broke off")
    print(f"  {report_line(finished.report)}\n", flush=True)
    return Answer(prompt, finished)


def _print_summary(answers: Sequence[Answer]) -> None:
    from rich.console import Console
    from rich.table import Table

    from orchestrator.answers import acceptance_length, size

    table = Table(title="What was done", header_style="bold", title_justify="left")
    table.add_column("prompt")
    for heading in ("in", "out", "TTFT ms", "ITL ms", "AL", "KV", "Mamba", "MTP", "hand-off ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for answer in answers:
        report = answer.finished.report
        table.add_row(
            answer.prompt.title,
            str(answer.finished.prompt_tokens),
            str(answer.finished.completion_tokens),
            f"{report.ttft_ms:.1f}",
            f"{report.mean_itl_ms:.2f}",
            f"{acceptance_length(report.speculation):.2f}",
            size(report.handoff.kv_bytes),
            size(report.handoff.mamba_bytes),
            size(report.handoff.mtp_bytes),
            f"{report.handoff.handoff_ms:.1f}",
        )
    # Wide enough for the table also where the output is a file.
    console = Console()
    Console(width=max(console.width, 112)).print(table)
    moved = sum(answer.moved_bytes for answer in answers)
    print(f"NIXL moved {size(moved)} ({moved} bytes) from prefill to decode.\n", flush=True)
