"""`tandem generate`: one request through a running cluster, its text as it comes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.cli.terminal import note, print_json


def generate(
    text: Annotated[str, typer.Argument(help="The prompt.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Most new tokens.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Same seed, same text, if temperature is above 0.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Which of the cluster's models; its first if not given.")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document instead of a stream.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="gRPC address of the router, if several run.")
    ] = None,
) -> None:
    """Send one prompt and stream the answer."""
    from orchestrator.answers import finish_reason, report_as_dict, report_line
    from orchestrator.cli.locate import running_cluster
    from orchestrator.client import Client
    from orchestrator.errors import UserError
    from protos.tandem.v1 import inference_pb2

    sampling = inference_pb2.ClientSampling(max_tokens=max_tokens, temperature=temperature)
    if seed is not None:
        sampling.seed = seed
    request = inference_pb2.GenerateRequest(text=text, sampling=sampling, model=model)
    pieces: list[str] = []
    token_ids: list[int] = []
    finished: inference_pb2.Finished | None = None
    with Client(address or running_cluster(None).for_commands) as client:
        for response in client.generate(request):
            if response.WhichOneof("event") == "finished":
                finished = response.finished
                continue
            pieces.append(response.delta.text)
            token_ids.extend(response.delta.token_ids)
            if not as_json:
                sys.stdout.write(response.delta.text)
                sys.stdout.flush()
    if finished is None:
        raise UserError("the answer broke off", "see `tandem status`")
    if not as_json:
        print()
        if sys.stdout.isatty():
            note(f"{len(token_ids)} tokens, {report_line(finished.report)}")
        return
    print_json(
        {
            "request_id": finished.request_id,
            "text": "".join(pieces),
            "token_ids": token_ids,
            "finish_reason": finish_reason(finished.reason),
            "prompt_tokens": finished.prompt_tokens,
            "completion_tokens": finished.completion_tokens,
            "report": report_as_dict(finished.report),
        }
    )
