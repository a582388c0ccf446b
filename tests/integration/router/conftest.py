"""A real router on free ports with fake workers, for each test that asks for one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from tokenizers import Tokenizer

from protos.tandem.v1 import admin_pb2_grpc, inference_pb2_grpc
from router.config import PriorityClass, RouterConfig
from router.server import RouterServer
from tests.integration.router.fake_workers import FakeWorker, Script
from tests.unit.router.tiny_model import write_tiny_model

ANSWER = "The lazy dog says ça va 🙂 to the quick fox."


@dataclass
class Running:
    """A router with its workers and a channel to it."""

    script: Script
    prefill: list[FakeWorker]
    decode: list[FakeWorker]
    server: RouterServer
    http: str
    grpc_address: str
    channel: grpc.aio.Channel
    inference: inference_pb2_grpc.InferenceAsyncStub
    admin: admin_pb2_grpc.AdminAsyncStub
    tokenizer: Tokenizer


StartRouter = Callable[..., Awaitable[Running]]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
async def start_router(model_dir: Path) -> AsyncIterator[StartRouter]:
    """Start a router with so many workers; the keywords change the script of the workers."""
    async with AsyncExitStack() as stack:

        async def start(
            prefill: int = 1,
            decode: int = 1,
            answer: str = ANSWER,
            queue_limit: int = 16,
            max_message_bytes: int = 64 * 1024,
            max_retries: int = 3,
            **script_fields: object,
        ) -> Running:
            tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
            script = Script(tokenizer.encode(answer).ids, **script_fields)  # type: ignore[arg-type]
            readers = [FakeWorker(f"prefill-{n}", "prefill", script) for n in range(prefill)]
            writers = [FakeWorker(f"decode-{n}", "decode", script) for n in range(decode)]
            records = []
            for worker in (*readers, *writers):
                records.append(await worker.start())
                stack.push_async_callback(worker.kill)
            config = RouterConfig(
                model_path=str(model_dir),
                model_name="tiny",
                workers=tuple(records),
                grpc="127.0.0.1:0",
                http="127.0.0.1:0",
                classes=(PriorityClass("interactive", 500, 40), PriorityClass("batch", 9999, 200)),
                queue_limit=queue_limit,
                local_prefill_tokens=0,
                max_retries=max_retries,
                orphan_grace_s=0.0,
                max_message_bytes=max_message_bytes,
            )
            server = RouterServer(config, validate=True)
            stack.push_async_callback(server.stop)
            addresses = await server.start()
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(addresses.grpc))
            return Running(
                script=script,
                prefill=readers,
                decode=writers,
                server=server,
                http=f"http://{addresses.http}",
                grpc_address=addresses.grpc,
                channel=channel,
                inference=inference_pb2_grpc.InferenceStub(channel),
                admin=admin_pb2_grpc.AdminStub(channel),
                tokenizer=tokenizer,
            )

        yield start
