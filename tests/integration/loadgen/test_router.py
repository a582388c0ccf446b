"""Loads through a real router in front of fake workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from loadgen.asking import Asking
from loadgen.clients.client import Client
from loadgen.clients.grpc_client import GrpcClient, channel_to
from loadgen.clients.http_client import HttpClient
from loadgen.figures import Targets
from loadgen.load import Load, LoadRun, opened
from loadgen.prompts.source import PromptSource
from loadgen.prompts.tokens import TextTokens
from loadgen.results import Run
from loadgen.sessions import Session, Turn
from loadgen.watching import watch_grpc, watch_http
from protos.tandem.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from tests.integration.router.conftest import Running, StartRouter

TARGETS = Targets(10_000.0, 10_000.0)
TIMEOUT_S = 60.0
OPEN_STREAMS = 2_000


async def run_load(
    client: Client, sessions: list[Session], model_dir: Path, router: Running | None = None
) -> Run:
    tokens = TextTokens.of_folder(model_dir)
    async with opened(client) as endpoint:
        source = PromptSource(tokens.encode("The quick brown fox jumps. " * 50), 320)
        cluster = None
        if router is not None:
            cluster = watch_grpc(channel_to(router.grpc_address, None, False))
        running = LoadRun(client, Load(sessions), TARGETS, cluster=cluster)
        asking = Asking(source, "tokens", tokens, most_tokens=endpoint.max_model_tokens)
        return await running.run(endpoint, asking)


def at_once(count: int, answer_tokens: int = 5) -> list[Session]:
    return [Session(number, 0.0, (Turn(20, answer_tokens),)) for number in range(count)]


async def test_requests_over_grpc_have_exactly_the_wanted_tokens(
    start_router: StartRouter, model_dir: Path
) -> None:
    router = await start_router()
    run = await run_load(GrpcClient(router.grpc_address), at_once(8), model_dir, router)
    report = run.document()
    assert (report["requests"], report["finished"], report["failed"]) == (8, 8, {})
    assert report["completion_tokens"] == 40
    assert {len(prefill.token_ids) for prefill in router.script.prefills} == {20}
    rows = report["timeline"]
    assert isinstance(rows, list)
    assert (rows[-1]["prefill_serving"], rows[-1]["decode_serving"]) == (1, 1)
    assert rows[-1]["finished"] == 8


async def test_a_second_turn_over_grpc_carries_the_answer(
    start_router: StartRouter, model_dir: Path
) -> None:
    router = await start_router()
    session = Session(0, 0.0, (Turn(20, 5), Turn(10, 3)))
    client = GrpcClient(router.grpc_address, keep_answers=True)
    run = await run_load(client, [session], model_dir)
    assert [record.good for record in run.recorder.records] == [True, True]
    first, second = (list(prefill.token_ids) for prefill in router.script.prefills)
    assert second[:25] == [*first, *router.script.answer[:5]]
    assert len(second) == 35


async def test_over_http_the_router_is_known_and_its_metrics_are_watched(
    start_router: StartRouter, model_dir: Path
) -> None:
    router = await start_router()
    client = HttpClient(router.http)
    run = await run_load(client, at_once(4), model_dir)
    assert run.target["tandem"] is True
    assert [record.tokens for record in run.recorder.records] == [5] * 4
    samples = watch_http(router.http)
    sample = await anext(samples)
    await samples.aclose()
    assert (sample.prefill_serving, sample.decode_serving, sample.queued) == (1, 1, 0)


@pytest.mark.parametrize("over", ["grpc", "http"])
async def test_refusals_are_counted_by_the_routers_reason(
    start_router: StartRouter, model_dir: Path, over: str
) -> None:
    router = await start_router(queue_limit=2, request_slots=1, pause_after=1)
    client: Client = GrpcClient(router.grpc_address) if over == "grpc" else HttpClient(router.http)
    running = asyncio.create_task(run_load(client, at_once(6), model_dir))
    await asyncio.wait_for(router.script.paused.wait(), TIMEOUT_S)
    router.script.go_on.set()
    report = (await asyncio.wait_for(running, TIMEOUT_S)).document()
    failed = report["failed"]
    assert isinstance(failed, dict)
    assert set(failed) == {"REASON_QUEUE_FULL"}
    assert report["requests"] == 6
    assert sum(failed.values()) + int(str(report["finished"])) == 6


class _Holding(inference_pb2_grpc.InferenceServicer):
    """Sends a first token, then waits until so many requests are held."""

    def __init__(self, count: int) -> None:
        self._all = asyncio.Barrier(count)

    async def GetModel(  # noqa: N802 - the name on the wire
        self, request: inference_pb2.GetModelRequest, context: object
    ) -> inference_pb2.GetModelResponse:
        return inference_pb2.GetModelResponse(name="held", max_model_tokens=512, vocab_size=320)

    async def Cancel(  # noqa: N802
        self, request: inference_pb2.CancelRequest, context: object
    ) -> inference_pb2.CancelResponse:
        return inference_pb2.CancelResponse(found=False)

    async def Generate(  # noqa: N802
        self, request: inference_pb2.GenerateRequest, context: object
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        yield inference_pb2.GenerateResponse(delta=inference_pb2.Delta(token_ids=[5]))
        await self._all.wait()
        finished = inference_pb2.Finished(reason=common_pb2.REASON_LENGTH, completion_tokens=1)
        yield inference_pb2.GenerateResponse(finished=finished)


async def test_one_process_holds_two_thousand_streams_over_grpc(model_dir: Path) -> None:
    # So many calls at once make gRPC's own server refuse some; our router has its own.
    server = grpc.aio.server(
        options=[
            ("grpc.server.max_pending_requests", 2 * OPEN_STREAMS),
            ("grpc.server.max_pending_requests_hard_limit", 2 * OPEN_STREAMS),
        ]
    )
    inference_pb2_grpc.add_InferenceServicer_to_server(_Holding(OPEN_STREAMS), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        client = GrpcClient(f"127.0.0.1:{port}")
        async with asyncio.timeout(TIMEOUT_S):
            report = (await run_load(client, at_once(OPEN_STREAMS, 1), model_dir)).document()
    finally:
        await server.stop(None)
    # None ends before all are open.
    assert report["finished"] == OPEN_STREAMS
    held = report["client"]
    assert isinstance(held, dict)
    assert held["most_open"] == OPEN_STREAMS
