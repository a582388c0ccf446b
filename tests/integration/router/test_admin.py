"""What operators can ask of routers, with simulated workers behind real sessions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import grpc
import pytest

from protos.tandem.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc
from protos.tandem.v1.common_pb2 import REASON_LAYOUT_MISMATCH, REASON_LENGTH, REASON_MIGRATED
from router.config import RouterConfig
from router.server import RouterServer
from workers.config import WorkerConfig
from workers.engine.commands import Sampling
from workers.engine.simulated.text import expected_answer
from workers.engine.simulated.times import LinearTimes
from workers.registry import WorkerRecord
from workers.server import WorkerServer

_VOCAB = 500
_TIMEOUT_S = 20.0
_PROMPT = list(range(40))


@dataclass
class Cluster:
    """Workers and routers in this process, behind real ports."""

    records: list[WorkerRecord] = field(default_factory=list)
    servers: list[RouterServer] = field(default_factory=list)
    inference: list[inference_pb2_grpc.InferenceAsyncStub] = field(default_factory=list)
    admin: list[admin_pb2_grpc.AdminAsyncStub] = field(default_factory=list)
    http: list[str] = field(default_factory=list)

    async def workers(self, router: int = 0) -> dict[str, admin_pb2.WorkerStatus]:
        status = await self.admin[router].GetStatus(admin_pb2.GetStatusRequest())
        return {worker.worker_id: worker for worker in status.workers}

    async def until(self, worker_id: str, router: int, **fields: str) -> None:
        """Wait until a router says so of a worker."""
        watch = self.admin[router].Watch(admin_pb2.WatchRequest(period_ms=50))
        async for status in watch:
            (worker,) = [one for one in status.workers if one.worker_id == worker_id]
            if all(getattr(worker, name) == value for name, value in fields.items()):
                watch.cancel()
                return


class _Answer:
    """The answer to one request, read as far as a test wants."""

    def __init__(
        self, cluster: Cluster, tokens: int, request_id: str = "r", router: int = 0
    ) -> None:
        request = inference_pb2.GenerateRequest(
            request_id=request_id,
            token_ids=inference_pb2.TokenIds(ids=_PROMPT),
            sampling=inference_pb2.ClientSampling(
                max_tokens=tokens, temperature=0.0, ignore_eos=True
            ),
        )
        self._expected = expected_answer(_PROMPT, Sampling(tokens), _VOCAB, tokens)
        self._stream = aiter(cluster.inference[router].Generate(request))
        self._ids: list[int] = []

    async def read(self, tokens: int) -> None:
        while len(self._ids) < tokens:
            self._ids.extend((await anext(self._stream)).delta.token_ids)

    async def rest(self) -> inference_pb2.Finished:
        async for response in self._stream:
            self._ids.extend(response.delta.token_ids)
            if response.HasField("finished"):
                assert self._ids == self._expected
                return response.finished
        raise AssertionError("no end")


@pytest.fixture
async def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    """One prefill and two decode workers, and two routers."""
    limits = {"max_position_embeddings": 4096, "vocab_size": _VOCAB}
    (tmp_path / "config.json").write_text(json.dumps(limits))
    config = WorkerConfig(
        worker_id="",
        role="decode",
        model_path=str(tmp_path),
        model_name="m",
        engine="simulated",
        simulated=LinearTimes(step_ms=2.0, prompt_token_us=5.0, row_us=5.0, transfer_ms=0.5),
    )
    made = Cluster()
    async with AsyncExitStack() as stack:
        for worker_id, role in (("p", "prefill"), ("d1", "decode"), ("d2", "decode")):
            layout = {"kvp": 2, "ep": 2} if worker_id == "d2" else {}
            own = replace(config, worker_id=worker_id, role=role, **layout)  # type: ignore[arg-type]
            server = WorkerServer(own)
            stack.push_async_callback(server.stop)
            made.records.append(await server.start())
        for _ in range(2):
            router = RouterServer(
                RouterConfig(
                    model_path=str(tmp_path),
                    model_name="m",
                    workers=tuple(made.records),
                    grpc="127.0.0.1:0",
                    http="127.0.0.1:0",
                ),
                validate=True,
            )
            stack.push_async_callback(router.stop)
            addresses = await router.start()
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(addresses.grpc))
            made.servers.append(router)
            made.inference.append(inference_pb2_grpc.InferenceStub(channel))
            made.admin.append(admin_pb2_grpc.AdminStub(channel))
            made.http.append(f"http://{addresses.http}")
        async with asyncio.timeout(_TIMEOUT_S):
            yield made


async def _drained(cluster: Cluster, worker_id: str, router: int = 0) -> list[int]:
    """Drain a worker; how many requests it had at each step."""
    steps = []
    async for progress in cluster.admin[router].Drain(admin_pb2.DrainRequest(worker_id=worker_id)):
        steps.append(progress.running_requests)
        if progress.safe_to_delete:
            return steps
    raise AssertionError("the drain ended before it was safe to delete")


async def _busy(cluster: Cluster, router: int = 0) -> tuple[str, str]:
    """The decode worker that a router's only request runs on, and the other one."""
    workers = await cluster.workers(router)
    (busy,) = [name for name, one in workers.items() if name != "p" and one.running_requests]
    return busy, "d1" if busy == "d2" else "d2"


async def test_a_drain_moves_what_runs_whichever_router_it_belongs_to(cluster: Cluster) -> None:
    for router in range(2):
        running = _Answer(cluster, 1000, f"r{router}", router)
        await running.read(3)
        busy, other = await _busy(cluster, router)
        steps = await _drained(cluster, busy)
        assert steps[-1] == 0
        finished = await running.rest()
        assert finished.reason == REASON_LENGTH
        assert finished.report.decode_worker == other
        story = await cluster.admin[router].Explain(
            admin_pb2.ExplainRequest(request_id=f"r{router}")
        )
        assert REASON_MIGRATED in [step.reason for step in story.steps]
        assert (await cluster.workers())[busy].duty == "safe_to_delete"
        # And it takes nothing more, of the other router either.
        late = await _Answer(cluster, 5, f"late-{router}", 1 - router).rest()
        assert late.report.decode_worker == other

        resumed = cluster.admin[0].Drain(admin_pb2.DrainRequest(worker_id=busy, resume=True))
        assert [step.safe_to_delete async for step in resumed] == [False]
        for one in range(2):
            await cluster.until(busy, one, duty="serving")


async def test_a_drain_lets_what_nobody_else_takes_finish(cluster: Cluster) -> None:
    running = _Answer(cluster, 800)
    await running.read(3)
    busy, other = await _busy(cluster)
    await _drained(cluster, other)
    draining = asyncio.create_task(_drained(cluster, busy))
    await cluster.until(busy, 1, duty="draining")
    assert not draining.done()
    assert (await running.rest()).report.decode_worker == busy
    steps = await draining
    assert (steps[0], steps[-1]) == (1, 0)
    assert (await cluster.workers())[busy].duty == "safe_to_delete"


async def test_a_flip_drains_changes_the_role_for_every_router_and_back(cluster: Cluster) -> None:
    answer = await cluster.admin[0].Flip(admin_pb2.FlipRequest(worker_id="d1", role="prefill"))
    assert (answer.role, answer.reason) == ("prefill", 0)
    for router in range(2):
        await cluster.until("d1", router, role="prefill", duty="serving")
        await _drained(cluster, "p", router)
        finished = await _Answer(cluster, 5, f"r{router}", router).rest()
        assert finished.report.prefill_worker == "d1"
        resume = cluster.admin[router].Drain(admin_pb2.DrainRequest(worker_id="p", resume=True))
        assert [step async for step in resume]
    back = await cluster.admin[1].Flip(admin_pb2.FlipRequest(worker_id="d1", role="decode"))
    assert back.role == "decode"
    again = await cluster.admin[1].Flip(admin_pb2.FlipRequest(worker_id="d1", role="decode"))
    assert (again.role, again.reason) == ("decode", 0)


async def test_a_worker_whose_layout_serves_one_role_says_so_and_goes_on(cluster: Cluster) -> None:
    answer = await cluster.admin[0].Flip(admin_pb2.FlipRequest(worker_id="d2", role="prefill"))
    assert (answer.role, answer.reason) == ("decode", REASON_LAYOUT_MISMATCH)
    assert "kvp" in answer.detail
    await _drained(cluster, "d1")
    assert (await _Answer(cluster, 5).rest()).report.decode_worker == "d2"


@pytest.mark.parametrize("role", ["prefill", "reader"])
async def test_what_is_not_there_is_named(cluster: Cluster, role: str) -> None:
    worker_id = "absent" if role == "prefill" else "d1"
    with pytest.raises(grpc.aio.AioRpcError, match="absent" if role == "prefill" else "reader"):
        await cluster.admin[0].Flip(admin_pb2.FlipRequest(worker_id=worker_id, role=role))
    if role == "prefill":
        with pytest.raises(grpc.aio.AioRpcError, match="absent") as error:
            await _drained(cluster, "absent")
        assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_pools_that_nobody_sizes_say_so(cluster: Cluster) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="in the spec") as error:
        await cluster.admin[0].Scale(admin_pb2.ScaleRequest(role="decode", workers=3))
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_the_status_says_how_well_the_pools_match(cluster: Cluster) -> None:
    before = (await cluster.admin[0].GetStatus(admin_pb2.GetStatusRequest())).matching
    assert not before.HasField("matched_ratio")
    assert before.decode_idle_share == 1.0
    await _Answer(cluster, 50).rest()
    after = (await cluster.admin[0].GetStatus(admin_pb2.GetStatusRequest())).matching
    assert 0.0 < after.matched_ratio < 1.0
    assert 0.9 < after.decode_idle_share < 1.0
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"{cluster.http[0]}/metrics") as response,
    ):
        text = await response.text()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert 0.0 < float(values["tandem_matched_ratio"]) < 1.0
    assert 0.9 < float(values['tandem_idle_share{role="decode"}']) < 1.0
    assert float(values['tandem_busy_seconds_total{role="decode"}']) > 0.05
