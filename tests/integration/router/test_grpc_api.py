"""The gRPC API of a real router in front of fake workers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos.tandem.v1 import admin_pb2, common_pb2, inference_pb2
from router.grpc_services import REASON_METADATA
from tests.integration.router.conftest import ANSWER, Running, StartRouter
from tests.unit.router.tiny_model import EOS_ID, MAX_MODEL_TOKENS, VOCAB_SIZE

TIMEOUT_S = 20.0
Sampling = inference_pb2.ClientSampling


def text_request(text: str = "The fox", **fields: object) -> inference_pb2.GenerateRequest:
    sampling = fields.pop("sampling", None) or Sampling(max_tokens=20, temperature=0)
    return inference_pb2.GenerateRequest(text=text, sampling=sampling, **fields)  # type: ignore[arg-type]


def ids_request(*ids: int) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=ids))


def reason_of(error: grpc.aio.AioRpcError) -> str:
    return cast("Mapping[str, str]", error.trailing_metadata())[REASON_METADATA]


@dataclass
class Answer:
    """What a client has got so far of one call."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: inference_pb2.Finished | None = None


class Client:
    """One call that can be read up to a certain token, and later to its end."""

    def __init__(self, router: Running, request: inference_pb2.GenerateRequest) -> None:
        self.answer = Answer()
        self.call = router.inference.Generate(request, timeout=TIMEOUT_S)
        self._responses = aiter(self.call)

    async def read(self, tokens: int) -> None:
        """Read until so many tokens are there."""
        while len(self.answer.ids) < tokens:
            self._take(await anext(self._responses))

    async def rest(self) -> tuple[str, list[int], list[float], inference_pb2.Finished]:
        """Read to the end; raises AioRpcError for a call that fails."""
        async for response in self._responses:
            self._take(response)
        answer = self.answer
        assert answer.finished is not None
        return answer.text, answer.ids, answer.logprobs, answer.finished

    def _take(self, response: inference_pb2.GenerateResponse) -> None:
        if response.WhichOneof("event") == "finished":
            self.answer.finished = response.finished
            return
        self.answer.text += response.delta.text
        self.answer.ids.extend(response.delta.token_ids)
        self.answer.logprobs.extend(response.delta.logprobs)


async def collect(
    router: Running, request: inference_pb2.GenerateRequest
) -> tuple[str, list[int], list[float], inference_pb2.Finished]:
    return await Client(router, request).rest()


async def test_a_request_runs_on_both_workers_and_reports_its_hand_off(
    start_router: StartRouter,
) -> None:
    router = await start_router()
    text, ids, logprobs, finished = await collect(router, text_request(request_id="r1"))
    assert ids == [router.script.token(index) for index in range(20)]
    assert text == router.tokenizer.decode(ids)
    assert not logprobs
    assert finished.reason == common_pb2.REASON_LENGTH
    assert finished.completion_tokens == 20
    assert finished.prompt_tokens == len(router.tokenizer.encode("The fox").ids)
    report = finished.report
    assert (report.prefill_worker, report.decode_worker) == ("prefill-0", "decode-0")
    assert (report.handoff.kv_bytes, report.prefill_ms) == (1024, 1.5)
    assert 0 < report.ttft_ms <= report.total_ms
    prefill = router.script.prefills[0]
    assert list(prefill.token_ids) == router.tokenizer.encode("The fox").ids
    assert prefill.ticket.reservation == prefill.item.handle


async def test_the_whole_answer_ends_at_the_stop_token_and_hides_it(
    start_router: StartRouter,
) -> None:
    router = await start_router()
    router.script.answer.append(EOS_ID)
    request = text_request(sampling=Sampling(temperature=0, logprobs=True))
    text, ids, logprobs, finished = await collect(router, request)
    assert text == ANSWER
    assert ids[-1] == EOS_ID
    assert logprobs == [-0.25 * (index + 1) for index in range(len(ids))]
    assert finished.reason == common_pb2.REASON_STOP_TOKEN


async def test_alternatives_come_with_each_token(start_router: StartRouter) -> None:
    router = await start_router()
    sampling = Sampling(max_tokens=3, logprobs=True, top_logprobs=2, min_p=0.5)
    deltas = [
        response.delta
        async for response in router.inference.Generate(text_request(sampling=sampling))
        if response.HasField("delta")
    ]
    ids = [token_id for delta in deltas for token_id in delta.token_ids]
    tops = [top for delta in deltas for top in delta.top_logprobs]
    assert [list(top.logprobs) for top in tops] == [[-0.25, -1.25], [-0.5, -1.5], [-0.75, -1.75]]
    assert [top.token_ids[0] for top in tops] == ids
    assert router.script.prefills[0].item.sampling.min_p == 0.5


async def test_one_token_frees_the_reservation_of_decode(start_router: StartRouter) -> None:
    router = await start_router()
    request = text_request(sampling=Sampling(max_tokens=1))
    _, ids, _, finished = await collect(router, request)
    assert ids == [router.script.token(0)]
    assert finished.reason == common_pb2.REASON_LENGTH
    worker_id, _ = await asyncio.wait_for(router.script.cancels.get(), TIMEOUT_S)
    assert worker_id == "decode-0"


async def test_without_prefill_workers_decode_reads_the_prompt(start_router: StartRouter) -> None:
    router = await start_router(prefill=0)
    _, ids, _, finished = await collect(router, text_request())
    assert len(ids) == 20
    assert finished.report.prefill_worker == finished.report.decode_worker == "decode-0"
    assert not finished.report.HasField("handoff")


async def test_without_decode_workers_a_request_is_unavailable(start_router: StartRouter) -> None:
    router = await start_router(decode=0)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await collect(router, text_request())
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(error.value) == "REASON_NO_WORKERS"


async def test_a_stop_string_ends_the_request_at_the_worker(start_router: StartRouter) -> None:
    router = await start_router()
    request = text_request(sampling=Sampling(max_tokens=100, temperature=0, stop=["ça va"]))
    text, ids, _, finished = await collect(router, request)
    assert text == ANSWER.partition("ça va")[0]
    assert finished.reason == common_pb2.REASON_STOP_STRING
    assert router.tokenizer.decode(ids).endswith("ça va")
    assert finished.completion_tokens == len(ids)


async def test_cancel_ends_the_stream_with_a_report_and_frees_the_worker(
    start_router: StartRouter,
) -> None:
    router = await start_router(pause_after=5)
    client = Client(router, text_request(request_id="r1"))
    await client.read(5)
    cancelled = await router.inference.Cancel(inference_pb2.CancelRequest(request_id="r1"))
    assert cancelled.found
    _, ids, _, finished = await client.rest()
    assert finished.reason == common_pb2.REASON_CANCELLED
    assert len(ids) == finished.completion_tokens == 5
    assert (await asyncio.wait_for(router.script.cancels.get(), TIMEOUT_S))[0] == "decode-0"
    again = await router.inference.Cancel(inference_pb2.CancelRequest(request_id="r1"))
    assert not again.found


async def test_a_client_that_leaves_frees_the_worker(start_router: StartRouter) -> None:
    router = await start_router(pause_after=5)
    client = Client(router, text_request())
    await client.read(5)
    client.call.cancel()
    assert (await asyncio.wait_for(router.script.cancels.get(), TIMEOUT_S))[0] == "decode-0"


async def test_a_deadline_ends_a_request_that_hangs(start_router: StartRouter) -> None:
    router = await start_router(pause_after=5)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await collect(router, text_request(deadline_ms=50))
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_running_request_id_is_refused_to_others_and_the_first_goes_on(
    start_router: StartRouter,
) -> None:
    router = await start_router(pause_after=5)
    first = Client(router, text_request(request_id="same"))
    await first.read(5)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await collect(router, text_request("Another", request_id="same"))
    assert error.value.code() is grpc.StatusCode.ALREADY_EXISTS
    retry = Client(router, text_request(request_id="same"))
    await retry.read(5)
    router.script.go_on.set()
    assert len((await first.rest())[1]) == 20
    assert (await retry.rest())[:2] == (await first.rest())[:2]


async def test_a_full_queue_refuses_and_says_when_to_come_again(start_router: StartRouter) -> None:
    router = await start_router(pause_after=5, request_slots=1, queue_limit=1)
    running = asyncio.create_task(collect(router, text_request()))
    await asyncio.wait_for(router.script.paused.wait(), TIMEOUT_S)
    waiting = asyncio.create_task(collect(router, text_request()))
    async with asyncio.timeout(TIMEOUT_S):
        while not (await router.admin.GetStatus(admin_pb2.GetStatusRequest())).queued_requests:
            pass
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await collect(router, text_request())
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "retry-after" in str(error.value.trailing_metadata())
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{router.http}/v1/completions", json={"prompt": "x"}) as response,
    ):
        assert response.status == 429
        assert int(response.headers["retry-after"]) >= 1
    router.script.go_on.set()
    assert len((await running)[1]) == len((await waiting)[1]) == 20


async def test_requests_of_a_worker_lost_in_the_middle_go_on_elsewhere(
    start_router: StartRouter,
) -> None:
    router = await start_router(prefill=0, decode=2, pause_after=5)
    first = Client(router, text_request())
    await first.read(5)
    second = asyncio.create_task(collect(router, text_request()))
    for _ in range(2):
        await asyncio.wait_for(router.script.items.get(), TIMEOUT_S)
    await router.decode[0].kill()
    retried = await asyncio.wait_for(router.script.items.get(), TIMEOUT_S)
    assert retried.generated_tokens == 5
    router.script.go_on.set()
    assert len((await second)[1]) == 20
    _, ids, _, finished = await first.rest()
    assert len(ids) == 20
    assert ids == (await second)[1]
    assert finished.report.decode_worker == "decode-1"
    status = await router.admin.GetStatus(admin_pb2.GetStatusRequest())
    assert {worker.worker_id: worker.connected for worker in status.workers} == {
        "decode-0": False,
        "decode-1": True,
    }


async def test_a_failed_hand_off_names_its_reason(start_router: StartRouter) -> None:
    router = await start_router(refuse_with=common_pb2.REASON_MANIFEST_MISMATCH, max_retries=0)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await collect(router, text_request())
    assert error.value.code() is grpc.StatusCode.INTERNAL
    assert error.value.details() == "as the script says"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (text_request(""), "text"),
        (inference_pb2.GenerateRequest(), "token_ids"),
        (ids_request(VOCAB_SIZE), "token_ids"),
        (ids_request(*[5] * MAX_MODEL_TOKENS), "token_ids"),
        (text_request(model="other"), "model"),
        (text_request(priority_class="first"), "priority_class"),
        (text_request(sampling=Sampling(temperature=2.5)), "temperature"),
        (text_request(sampling=Sampling(top_p=0)), "top_p"),
        (text_request(sampling=Sampling(max_tokens=0)), "max_tokens"),
        (text_request(sampling=Sampling(max_tokens=MAX_MODEL_TOKENS)), "max_tokens"),
        (text_request(sampling=Sampling(stop=[""])), "stop"),
    ],
)
async def test_what_is_wrong_is_named(
    start_router: StartRouter, request_: inference_pb2.GenerateRequest, field: str
) -> None:
    router = await start_router()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await collect(router, request_)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(error.value.details()).startswith(f"{field}: ")
    assert router.script.items.empty()


async def test_an_oversized_message_is_refused_and_the_router_goes_on(
    start_router: StartRouter,
) -> None:
    router = await start_router(max_message_bytes=16 * 1024)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await collect(router, text_request("x" * 20 * 1024))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len((await collect(router, text_request()))[1]) == 20


async def test_an_internal_error_shows_a_reference_and_no_trace(
    start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = await start_router()

    def broken(name: str) -> None:
        raise KeyError("a secret of the code")

    monkeypatch.setattr(router.server.models, "of", broken)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await collect(router, text_request())
    assert error.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(error.value.details())


async def test_status_shows_workers_and_their_room(start_router: StartRouter) -> None:
    router = await start_router(pause_after=5)
    client = Client(router, text_request())
    await client.read(5)
    status = await router.admin.GetStatus(admin_pb2.GetStatusRequest())
    assert (status.model, status.running_requests, status.queued_requests) == ("tiny", 1, 0)
    decode, prefill = status.workers
    assert (decode.worker_id, decode.role, decode.connected) == ("decode-0", "decode", True)
    assert (decode.running_requests, decode.request_slots) == (1, 3)
    assert (prefill.running_requests, prefill.request_slots) == (0, 4)
    assert decode.free_tokens < decode.total_tokens
    assert decode.uptime_s > 0
    router.script.go_on.set()
    await client.rest()


async def test_get_model_says_what_the_workers_take(start_router: StartRouter) -> None:
    router = await start_router()
    model = await router.inference.GetModel(inference_pb2.GetModelRequest())
    assert (model.name, model.max_model_tokens, model.vocab_size) == ("tiny", 512, VOCAB_SIZE)
    assert list(model.eos_token_ids) == [EOS_ID]
    with pytest.raises(grpc.aio.AioRpcError, match="other"):
        await router.inference.GetModel(inference_pb2.GetModelRequest(model="other"))


async def test_health_follows_the_decode_workers(start_router: StartRouter) -> None:
    router = await start_router()
    health = health_pb2_grpc.HealthStub(router.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service="tandem.v1.Inference"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    await router.decode[0].kill()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    overall = await health.Check(health_pb2.HealthCheckRequest())
    assert overall.status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_reflection_lists_the_services(start_router: StartRouter) -> None:
    router = await start_router()
    stub = reflection_pb2_grpc.ServerReflectionStub(router.channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert {"tandem.v1.Inference", "tandem.v1.Admin"} <= names
    await call.done_writing()
