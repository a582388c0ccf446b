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
    from orchestrator.spec import DecodePool
    from protos.tandem.v1 import inference_pb2

_LONG = (
    "A module is a file containing Python definitions and statements. The file name is the "
    "module name with the suffix .py appended. Within a module, the name of the module is "
    "available as the value of a global variable. Each module has its own namespace, which is "
    "used as the global namespace by all functions defined in the module. Thus, the author of a "
    "module can use global variables in the module without worrying about accidental clashes. "
)


# The decode worker of the shipped model: two ranks that share the tokens in attention and the
# experts after it. They are slower here than one, whose memory would do; they show what moves.
_GROUP: dict[str, object] = {
    "decode.layout.kvp": 2,
    "decode.layout.ep": 2,
    "decode.draft_tokens": 3,
}


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
        str | None,
        typer.Option(help="Checkpoint folder, served by single ranks; else the shipped model."),
    ] = None,
) -> None:
    """Start a cluster, answer prompts, print the report, stop everything."""
    from orchestrator.runtime.child import Interrupted
    from orchestrator.runtime.cluster import LocalCluster
    from orchestrator.spec import load_spec

    # Any free port: a demo must run beside whatever else this machine does.
    overrides: dict[str, object] = {"router.grpc": "127.0.0.1:0", "router.http": "127.0.0.1:0"}
    overrides |= _GROUP if model is None else {"model.path": model}
    spec = load_spec(None, overrides, {"model.path": "--model"})
    cluster = LocalCluster(spec)
    began = time.monotonic()
    answers: list[Answer] = []
    with StopSignals() as signals:
        try:
            with progress() as report:
                endpoints = cluster.start(report, signals.requested)
            print(
                f"Up in {time.monotonic() - began:.1f} s: Valkey, Ray Serve, one prefill worker, "
                f"one decode worker of {_in_words(spec.decode)}, and the router on "
                f"{endpoints.grpc}\n",
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
    if not any(answer.moved_bytes > 0 for answer in answers):
        raise UserError("no state was moved by NIXL: prefill and decode were not disaggregated")


def _in_words(decode: DecodePool) -> str:
    layout = decode.layout
    if layout.ranks == 1:
        return "one rank"
    sizes = f"KVP {layout.kvp} x TPA {layout.tpa}, TPF {layout.tpf} x EP {layout.ep}"
    return f"{layout.ranks} ranks ({sizes}) with {decode.draft_tokens} draft tokens"


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
    moved_columns = ("KV", "Mamba", "MTP", "desc.", "exposed ms")
    for heading in ("in", "out", "TTFT ms", "ITL ms", "AL", *moved_columns):
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
            str(report.handoff.descriptors),
            f"{report.handoff.handoff_ms:.1f}",
        )
    # Wide enough for the table also where the output is a file.
    console = Console()
    Console(width=max(console.width, 112)).print(table)
    moved = sum(answer.moved_bytes for answer in answers)
    transfer_ms = sum(answer.finished.report.handoff.transfer_ms for answer in answers)
    hidden_ms = sum(answer.finished.report.handoff.hidden_ms for answer in answers)
    hidden = f"{hidden_ms / transfer_ms:.0%}" if transfer_ms else "none"
    print(
        f"NIXL moved {size(moved)} ({moved} bytes) from prefill to decode in {transfer_ms:.1f} ms, "
        f"{hidden} of it while prompts were still being read.\n"
        "Prompts of a few tokens may be read where they are decoded: then nothing moves.\n",
        flush=True,
    )
