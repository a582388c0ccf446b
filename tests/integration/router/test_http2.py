"""gRPC's own clients against the router's HTTP/2 server: sizes, limits, compression, ends."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from protos.tandem.v1 import admin_pb2, inference_pb2, inference_pb2_grpc
from tests.integration.router.conftest import StartRouter
from tests.integration.router.test_grpc_api import TIMEOUT_S, collect, ids_request, text_request
from workers.http2 import frames

Sampling = inference_pb2.ClientSampling


async def test_many_calls_on_one_connection_each_get_their_own(start_router: StartRouter) -> None:
    router = await start_router(request_slots=64, total_tokens=1 << 16, queue_limit=1000)
    requests = [text_request(sampling=Sampling(max_tokens=1 + n % 30)) for n in range(300)]
    answers = await asyncio.gather(*(collect(router, request) for request in requests))
    for n, (_, ids, _, finished) in enumerate(answers):
        assert ids == [router.script.token(index) for index in range(1 + n % 30)]
        assert finished.completion_tokens == len(ids)


async def test_a_client_that_does_not_read_holds_up_nobody_else(start_router: StartRouter) -> None:
    top = Sampling(max_tokens=400, logprobs=True, top_logprobs=20)
    router = await start_router(total_tokens=1 << 16)
    slow = aiter(router.inference.Generate(text_request(sampling=top)))
    first = await anext(slow)
    for _ in range(5):
        assert len((await collect(router, text_request()))[1]) == 20
    count = len(first.delta.token_ids)
    async for response in slow:
        count += len(response.delta.token_ids)
    assert count == 400


async def test_large_and_compressed_requests_are_read(start_router: StartRouter) -> None:
    router = await start_router(max_message_bytes=1 << 20)
    ids = ids_request(*(n % 300 for n in range(400)))
    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
        call = router.inference.Generate(ids, compression=compression, timeout=TIMEOUT_S)
        async for response in call:
            last = response
        assert last.finished.prompt_tokens == 400
    assert list(router.script.prefills[-1].token_ids) == list(ids.token_ids.ids)
    # Small on the wire, too large unpacked.
    bomb = inference_pb2.GenerateRequest(text="x" * (4 << 20))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await collect_compressed(router.inference.Generate(bomb, compression=grpc.Compression.Gzip))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def collect_compressed(call: object) -> None:
    async for _ in call:  # type: ignore[attr-defined]
        pass


async def test_methods_that_are_not_served_are_unimplemented(start_router: StartRouter) -> None:
    router = await start_router()
    nothing = router.channel.unary_unary("/tandem.v1.Inference/Nothing", None, None)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await nothing(b"")
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_deadline_of_a_call_frees_the_worker(start_router: StartRouter) -> None:
    router = await start_router(pause_after=5)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        async for _ in router.inference.Generate(text_request(), timeout=0.3):
            pass
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    worker = ""
    while worker != "decode-0":
        worker, _ = await asyncio.wait_for(router.script.cancels.get(), TIMEOUT_S)


async def test_a_connection_that_breaks_frees_its_workers(start_router: StartRouter) -> None:
    router = await start_router(pause_after=5)
    async with grpc.aio.insecure_channel(router.grpc_address) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Generate(text_request())
        await call.read()
        await asyncio.wait_for(router.script.paused.wait(), TIMEOUT_S)
    worker = ""
    while worker != "decode-0":
        worker, _ = await asyncio.wait_for(router.script.cancels.get(), TIMEOUT_S)


async def test_other_protocols_are_turned_away_and_the_router_goes_on(
    start_router: StartRouter,
) -> None:
    router = await start_router()
    host, _, port = router.grpc_address.rpartition(":")
    for said in (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\x16\x03\x01" + b"\0" * 200):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(said)
        await asyncio.wait_for(reader.read(), TIMEOUT_S)
        writer.close()
    assert len((await collect(router, text_request()))[1]) == 20


async def test_watch_tells_of_workers_that_go(start_router: StartRouter) -> None:
    router = await start_router(decode=2)
    call = router.admin.Watch(admin_pb2.WatchRequest(period_ms=60_000))
    first = await call.read()
    assert isinstance(first, admin_pb2.GetStatusResponse)
    assert [worker.connected for worker in first.workers] == [True, True, True]
    await router.decode[1].kill()
    second = await asyncio.wait_for(call.read(), TIMEOUT_S)
    assert isinstance(second, admin_pb2.GetStatusResponse)
    connected = {worker.worker_id: worker.connected for worker in second.workers}
    assert connected == {"prefill-0": True, "decode-0": True, "decode-1": False}
    call.cancel()


async def test_explain_tells_the_story_of_a_request(start_router: StartRouter) -> None:
    router = await start_router()
    await collect(router, text_request(request_id="told"))
    story = await router.admin.Explain(admin_pb2.ExplainRequest(request_id="told"))
    assert story.state == "finished"
    assert (story.prefill_worker, story.decode_worker) == ("prefill-0", "decode-0")
    assert [step.state for step in story.steps][:2] == ["queued", "reserved"]
    (placement,) = story.placements
    assert len(story.lines) == len(story.steps) + len(placement.candidates)
    (chosen,) = [one for one in placement.candidates if one.chosen]
    assert (chosen.prefill_worker, chosen.decode_worker) == ("prefill-0", "decode-0")
    assert story.retries == 0
    for answer_id in ("cmpl-told", "chatcmpl-told"):  # as OpenAI clients see it
        assert await router.admin.Explain(admin_pb2.ExplainRequest(request_id=answer_id)) == story
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await router.admin.Explain(admin_pb2.ExplainRequest(request_id="never"))
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_client_that_floods_is_told_and_cut_off_and_others_go_on(
    start_router: StartRouter,
) -> None:
    router = await start_router()
    host, _, port = router.grpc_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    ping = frames.frame(frames.PING, 0, 0, bytes(8))
    writer.write(frames.PREFACE + frames.settings(()) + 2000 * ping)
    said = await asyncio.wait_for(reader.read(-1), TIMEOUT_S)
    at, kinds = 0, []
    while at < len(said):
        length, kind, _, _ = frames.frame_head(said, at)
        kinds.append(kind)
        at += frames.HEADER_BYTES + length
        last = said[at - length : at]
    assert kinds[-1] == frames.GOAWAY
    assert int.from_bytes(last[4:8]) == frames.ErrorCode.ENHANCE_YOUR_CALM
    assert kinds.count(frames.PING) < 2000
    writer.close()
    assert len((await collect(router, text_request()))[1]) == 20
