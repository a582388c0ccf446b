"""Simulated workers as processes: they start without torch and hand over to each other."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from protos.tandem.v1 import common_pb2
from router.config import RouterConfig
from router.dispatcher import Dispatcher
from router.requests import ClientRequest, Finished
from workers.config import WorkerConfig
from workers.engine.commands import Sampling
from workers.engine.simulated.text import expected_answer
from workers.engine.simulated.times import LinearTimes
from workers.handoff.notifications import Notifications
from workers.registry import WorkerRecord

_TIMEOUT_S = 60.0
_VOCAB = 500


@pytest.fixture
def config(tmp_path: Path) -> WorkerConfig:
    limits = {"max_position_embeddings": 4096, "vocab_size": _VOCAB}
    (tmp_path / "config.json").write_text(json.dumps(limits))
    return WorkerConfig(
        worker_id="only",
        role="decode",
        model_path=str(tmp_path),
        model_name="m",
        engine="simulated",
        simulated=LinearTimes(step_ms=0.5, prompt_token_us=1.0, row_us=1.0, transfer_ms=0.5),
    )


@asynccontextmanager
async def _running(config: WorkerConfig) -> AsyncIterator[tuple[Process, WorkerRecord]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "workers.server", stdin=PIPE, stdout=PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(config.to_json().encode() + b"\n")
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            record = WorkerRecord.from_json((await process.stdout.readline()).decode())
        yield process, record
        process.terminate()
        assert await asyncio.wait_for(process.wait(), _TIMEOUT_S) == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _answer(dispatcher: Dispatcher, prompt: list[int], tokens: int) -> list[int]:
    client = ClientRequest(prompt, max_tokens=tokens, temperature=0.0, ignore_eos=True)
    ids: list[int] = []
    async with aclosing(dispatcher.generate(await dispatcher.prepare(client))) as items:
        async for item in items:
            if isinstance(item, Finished):
                assert item.reason == common_pb2.REASON_LENGTH
                assert item.report.prefill_worker != item.report.decode_worker
                return ids
            ids.extend(item.token_ids)
    raise AssertionError("no Finished came")


async def test_two_of_them_serve_a_router_exactly(config: WorkerConfig) -> None:
    async with AsyncExitStack() as stack:
        prefill = replace(config, worker_id="p", role="prefill")
        decode = replace(config, worker_id="d", role="decode")
        records = [
            (await stack.enter_async_context(_running(each)))[1] for each in (prefill, decode)
        ]
        assert {record.engine for record in records} == {"simulated"}
        dispatcher = Dispatcher(
            RouterConfig(model_path=config.model_path, model_name="m", workers=tuple(records)),
            validate=True,
        )
        await dispatcher.start(_TIMEOUT_S)
        stack.push_async_callback(dispatcher.stop)
        prompts = [[n % _VOCAB for n in range(start, start + 20)] for start in range(30)]
        answers = await asyncio.gather(*(_answer(dispatcher, prompt, 25) for prompt in prompts))
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer == expected_answer(prompt, Sampling(25), _VOCAB, 25)


async def test_a_burst_of_hand_offs_arrives_whole_and_a_lost_worker_loses_only_its_own() -> None:
    got: list[bytes] = []
    done = asyncio.Event()

    def receive(notification: bytes) -> None:
        got.append(notification)
        if len(got) == 5000:
            done.set()

    sender, receiver = await Notifications.open("127.0.0.1"), await Notifications.open("127.0.0.1")
    gone = await Notifications.open("127.0.0.1")
    await gone.close()
    receiver.receive = receive
    for number in range(5000):
        sender.send(gone.address, b"lost")
        sender.send(receiver.address, str(number).encode() * 20)
    await asyncio.wait_for(done.wait(), _TIMEOUT_S)
    assert got == [str(number).encode() * 20 for number in range(5000)]
    await sender.close()
    await receiver.close()


async def test_it_starts_without_torch(config: WorkerConfig) -> None:
    code = (
        "import asyncio, sys\n"
        "from workers.config import WorkerConfig\n"
        "from workers.server import WorkerServer\n"
        "async def main():\n"
        "    server = WorkerServer(WorkerConfig.from_json(sys.argv[1]))\n"
        "    await server.start()\n"
        "    await server.stop()\n"
        "    print(*sys.modules)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, config.to_json(), stdout=PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
    assert process.returncode == 0
    assert not {name.partition(".")[0] for name in out.decode().split()} & {"torch", "nixl", "ray"}


async def test_a_folder_that_is_no_checkpoint_is_named(
    config: WorkerConfig, tmp_path: Path
) -> None:
    absent = replace(config, model_path=str(tmp_path / "absent"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "workers.server", stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    _, error = await process.communicate(absent.to_json().encode() + b"\n")
    assert process.returncode == 1
    assert "config.json" in error.decode()
