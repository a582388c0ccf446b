"""Scripted workers behind a real gRPC server: the session protocol without an engine.

They answer every request with the same tokens, one for each step, and can be told to stop after
some tokens, so that a test can act in the middle of an answer without waiting for a clock.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

import grpc

from protos.tandem.v1 import common_pb2, handoff_pb2, inference_pb2, worker_pb2, worker_pb2_grpc
from workers.registry import WorkerRecord

FINGERPRINT = "fake"


@dataclass
class Job:
    """A request that a fake worker decodes."""

    item: worker_pb2.WorkItem
    next_index: int


@dataclass
class Script:
    """What all workers of a test share: the answer, and what the test has seen and allows."""

    answer: list[int]
    max_model_tokens: int = 512
    vocab_size: int = 320
    request_slots: int = 4
    total_tokens: int = 4096
    pause_after: int | None = None  # output tokens, then wait for `go_on`
    refuse_with: common_pb2.ReasonCode.ValueType | None = None
    tokens_per_step: int = 1
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    paused: asyncio.Event = field(default_factory=asyncio.Event)
    cancels: asyncio.Queue[tuple[str, int]] = field(default_factory=asyncio.Queue)
    items: asyncio.Queue[worker_pb2.WorkItem] = field(default_factory=asyncio.Queue)
    prefills: list[worker_pb2.Prefill] = field(default_factory=list)
    # Reservations whose state has been written, by number.
    written: dict[int, asyncio.Event] = field(default_factory=dict)

    def token(self, index: int) -> int:
        return self.answer[index % len(self.answer)]

    def alternative(self, index: int, rank: int) -> int:
        """The token that is `rank` places less likely than the one at `index`, which is best."""
        return self.token(index) if rank == 0 else (self.token(index) + rank) % self.vocab_size

    def end_reason(self, item: worker_pb2.WorkItem, index: int) -> common_pb2.ReasonCode.ValueType:
        """Why the answer ends with the token at `index`; REASON_UNSPECIFIED when it does not."""
        if self.token(index) in item.sampling.stop_token_ids:
            return common_pb2.REASON_STOP_TOKEN
        if index + 1 >= item.sampling.max_tokens:
            return common_pb2.REASON_LENGTH
        return common_pb2.REASON_UNSPECIFIED


class FakeSession:
    """One router's session with a fake worker."""

    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker
        self._script = worker.script
        self._decoding: dict[int, Job] = {}
        self._reserved: dict[int, worker_pb2.WorkItem] = {}
        self._work_seen = 0
        self._out: asyncio.Queue[worker_pb2.SessionEvents] = asyncio.Queue()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(
        self, commands: AsyncIterator[worker_pb2.SessionCommand]
    ) -> AsyncIterator[worker_pb2.SessionEvents]:
        self._out.put_nowait(
            worker_pb2.SessionEvents(
                welcome=worker_pb2.Welcome(worker_id=self._worker.worker_id),
                credits=self._credits(),
            )
        )
        self._spawn(self._read(commands))
        self._spawn(self._steps())
        try:
            while True:
                yield await self._out.get()
        finally:
            for task in self._tasks:
                task.cancel()

    def _spawn(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _credits(self) -> worker_pb2.Credits:
        running = [job.item for job in self._decoding.values()] + list(self._reserved.values())
        used = sum(item.prompt_tokens + item.sampling.max_tokens for item in running)
        return worker_pb2.Credits(
            request_slots=self._script.request_slots - len(running),
            free_tokens=self._script.total_tokens - used,
            total_tokens=self._script.total_tokens,
            total_slots=self._script.request_slots,
            work_seen=self._work_seen,
        )

    def _send(self, **events: object) -> None:
        message = worker_pb2.SessionEvents(**events)  # type: ignore[arg-type]
        message.credits.CopyFrom(self._credits())
        self._out.put_nowait(message)

    def _send_end(
        self, handle: int, reason: common_pb2.ReasonCode.ValueType, detail: str = ""
    ) -> None:
        self._send(ended=[worker_pb2.Ended(handle=handle, reason=reason, detail=detail)])

    async def _read(self, commands: AsyncIterator[worker_pb2.SessionCommand]) -> None:
        async for command in commands:
            match command.WhichOneof("command"):
                case "reserve":
                    self._work_seen += 1
                    self._reserve(command.reserve.item)
                case "prefill":
                    self._work_seen += 1
                    self._prefill(command.prefill)
                case "cancel":
                    self._cancel(command.cancel)

    def _reserve(self, item: worker_pb2.WorkItem) -> None:
        self._script.items.put_nowait(item)
        if self._script.refuse_with is not None:
            self._send_end(item.handle, self._script.refuse_with, "as the script says")
            return
        self._reserved[item.handle] = item
        written = self._script.written[item.handle] = asyncio.Event()
        ticket = handoff_pb2.HandoffTicket(reservation=item.handle)
        self._send(reserved=[worker_pb2.Reserved(handle=item.handle, ticket=ticket)])
        self._spawn(self._await_state(item, written))

    async def _await_state(self, item: worker_pb2.WorkItem, written: asyncio.Event) -> None:
        await written.wait()
        if self._reserved.pop(item.handle, None) is None:
            return
        self._decoding[item.handle] = Job(item, item.generated_tokens or 1)
        self._send(state_arrived=[worker_pb2.StateArrived(handle=item.handle)])
        self._wake.set()

    def _prefill(self, prefill: worker_pb2.Prefill) -> None:
        item = prefill.item
        self._script.items.put_nowait(item)
        self._script.prefills.append(prefill)
        if not prefill.HasField("ticket"):
            self._decoding[item.handle] = Job(item, item.generated_tokens)
            self._wake.set()
            return
        if not item.generated_tokens:
            self._send_tokens([Job(item, 0)])
            reason = self._script.end_reason(item, 0)
            if reason:
                self._send_end(item.handle, reason)
                return
        self._script.written[prefill.ticket.reservation].set()
        handoff = inference_pb2.HandoffReport(kv_bytes=1024, mamba_bytes=64, handoff_ms=0.5)
        done = worker_pb2.PrefillDone(handle=item.handle, prefill_ms=1.5, handoff=handoff)
        self._send(prefill_done=[done])

    def _cancel(self, cancel: worker_pb2.Cancel) -> None:
        self._script.cancels.put_nowait((self._worker.worker_id, cancel.handle))
        known = self._decoding.pop(cancel.handle, None) or self._reserved.pop(cancel.handle, None)
        if known is not None:
            self._send_end(cancel.handle, common_pb2.REASON_CANCELLED)

    def _send_tokens(self, jobs: list[Job]) -> None:
        script = self._script
        counts = [
            min(self._script.tokens_per_step, job.item.sampling.max_tokens - job.next_index)
            if job.next_index
            else 1
            for job in jobs
        ]
        indexes = [
            index
            for job, count in zip(jobs, counts, strict=True)
            for index in range(job.next_index, job.next_index + count)
        ]
        tops = [
            job.item.sampling.top_logprobs
            for job, count in zip(jobs, counts, strict=True)
            for _ in range(count)
        ]
        places = [
            (index, rank) for index, top in zip(indexes, tops, strict=True) for rank in range(top)
        ]
        self._send(
            tokens=worker_pb2.TokenBatch(
                handles=[job.item.handle for job in jobs],
                first_indexes=[job.next_index for job in jobs],
                counts=counts,
                token_ids=[self._script.token(index) for index in indexes],
                logprobs=[-0.25 * (index + 1) for index in indexes],
                top_counts=tops if any(tops) else (),
                top_token_ids=[script.alternative(index, rank) for index, rank in places],
                top_logprobs=[-0.25 * (index + 1) - rank for index, rank in places],
            )
        )
        for job, count in zip(jobs, counts, strict=True):
            job.next_index += count

    async def _steps(self) -> None:
        """One message for each step with a token of every request that decodes."""
        script = self._script
        while True:
            await self._wake.wait()
            if not self._decoding:
                self._wake.clear()
                continue
            jobs = list(self._decoding.values())
            furthest = max(job.next_index for job in jobs)
            if script.pause_after is not None and furthest >= script.pause_after:
                script.paused.set()
                await script.go_on.wait()
                jobs = list(self._decoding.values())
            if jobs:
                self._send_tokens(jobs)
            for job in jobs:
                reason = script.end_reason(job.item, job.next_index - 1)
                if reason:
                    del self._decoding[job.item.handle]
                    self._send_end(job.item.handle, reason)
            await asyncio.sleep(0)


class FakeWorker(worker_pb2_grpc.WorkerServicer):
    """A worker process as far as the router can tell."""

    def __init__(self, worker_id: str, role: Literal["prefill", "decode"], script: Script) -> None:
        self.worker_id = worker_id
        self.role: Literal["prefill", "decode"] = role
        self.script = script
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._port = 0

    async def Session(  # noqa: N802
        self,
        request_iterator: AsyncIterator[worker_pb2.SessionCommand],
        context: grpc.aio.ServicerContext[worker_pb2.SessionCommand, worker_pb2.SessionEvents],
    ) -> AsyncIterator[worker_pb2.SessionEvents]:
        first = await anext(request_iterator)
        assert first.WhichOneof("command") == "hello"
        async for message in FakeSession(self).run(request_iterator):
            yield message

    async def start(self) -> WorkerRecord:
        worker_pb2_grpc.add_WorkerServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return WorkerRecord(
            worker_id=self.worker_id,
            role=self.role,
            engine="simulated",
            address=f"127.0.0.1:{self._port}",
            model_name="tiny",
            model_fingerprint=FINGERPRINT,
            epoch=0,
            max_model_tokens=self.script.max_model_tokens,
            vocab_size=self.script.vocab_size,
            layout="tp=1",
            pid=os.getpid(),
            started_unix_s=time.time(),
        )

    async def kill(self) -> None:
        """End at once, as a process that is killed does: every session breaks."""
        await self._server.stop(None)
