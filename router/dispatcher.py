"""Runs the pure core against the world: feeds it events, carries out its instructions.

The single owner of everything mutable in a router. Everything happens on one event loop, one
event at a time, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

from redis.exceptions import RedisError

from protos.tandem.v1 import common_pb2
from router.answer import Answer
from router.config import RouterConfig
from router.core.event_log import event_line, header_line
from router.core.events import (
    CancelRequested,
    Drained,
    DrainRequested,
    Event,
    Flipped,
    FlipRequested,
    RequestArrived,
    Role,
    ShutDown,
    Tick,
    WorkerJoined,
    WorkerLost,
)
from router.core.explain import Explanation
from router.core.instructions import (
    Deliver,
    Finish,
    Instruction,
    SendCancel,
    SendDrain,
    SendFlip,
    SendMigrate,
    SendPrefill,
    SendRenew,
    SendReserve,
)
from router.core.lifecycle import Lifecycle
from router.core.matching import MatchReport
from router.core.policy import ClassPolicy, Policy, TenantPolicy
from router.core.prefixes import PrefixKeys
from router.core.reasons import WELL, reason_name
from router.core.worker_view import WorkerView
from router.errors import RequestError
from router.items import items_of
from router.matching_window import MatchingWindow
from router.membership import Membership
from router.outbox import Outbox
from router.relay.intake import Intake
from router.replays import Replays, content_of
from router.report import record_waits
from router.requests import ClientRequest, Delta, Finished, GenerationRequest
from router.router_metrics import RouterMetrics
from router.status import RouterStatus, WorkerState
from router.text.text_model import (
    load_generation_defaults,
    load_model_limits,
    load_text_model,
)
from router.traffic import TrafficCounts
from router.validation import ServedModel, validate
from router.wire import command_for, order_command
from workers.registry import WorkerDirectory
from workers.telemetry import OpenSpan, Tracing


@dataclass(slots=True, eq=False)
class _Running:
    """A request whose end has not been said yet."""

    request: GenerationRequest
    content: bytes  # what it asks for, where it is repeatable
    outbox: Outbox
    span: OpenSpan
    readers: int = 0


class Dispatcher:
    """A router without servers: usable on its own, in any asyncio program.

        dispatcher = Dispatcher(RouterConfig(model_path=..., model_name=..., workers=(p, d)))
        await dispatcher.start()
        request = await dispatcher.prepare(ClientRequest(prompt="Once", max_tokens=16))
        async for item in dispatcher.generate(request):
            ...                      # Delta, Delta, ..., Finished
        await dispatcher.stop()

    `generate` ends with exactly one Finished, whose reason says whether the request ended well;
    it raises RequestError only for the id of another request that is running. A consumer that
    leaves early must close the generator (contextlib.aclosing), which cancels the request.
    """

    def __init__(
        self, config: RouterConfig, tracing: Tracing | None = None, validate: bool = False
    ) -> None:
        """`validate` audits the core after each event: for tests. Raises ModelFilesError when
        the checkpoint's tokenizer or configuration is broken."""
        self._config = config
        self._tracing = tracing or Tracing(None)
        folder = Path(config.model_path)
        self._text = load_text_model(folder)
        self._defaults = load_generation_defaults(folder)
        self._limits = load_model_limits(folder)
        # Random, so that a worker never meets a handle again after the router's restart.
        first_handle = secrets.randbits(40) << 20
        policy = policy_of(config)
        self._lifecycle = Lifecycle(policy, first_handle, validate=validate)
        self._event_log: TextIO | None = None
        if config.event_log is not None:
            self._event_log = Path(config.event_log).open("w", encoding="utf-8")  # noqa: SIM115
            print(header_line(policy, first_handle), file=self._event_log)
        router_id = f"router-{secrets.token_hex(4)}"
        self.metrics = RouterMetrics()
        self._policy = policy
        self._traffic = TrafficCounts()
        self._replays = Replays(config.replay_window_s, config.replay_tokens)
        self._intake = Intake(self._feed, self.metrics)
        others = frozenset(model.name for model in config.more_models)
        self._members = Membership(config.model_name, router_id, self._intake.take, others)
        self._directory: WorkerDirectory | None = None
        self._following: asyncio.Task[None] | None = None
        self._running: dict[str, _Running] = {}
        self._matching = MatchingWindow()
        self._inbox: deque[Event] = deque()
        self._handling = False
        self._settling = False
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s: float | None = None
        self._epoch_ns = 0
        self._was_ready = False
        self._ready_listeners: list[Callable[[], None]] = []
        self._change_waiters: list[asyncio.Future[None]] = []

    async def start(self, connect_timeout_s: float = 30.0) -> Self:
        """Open the sessions. With a fixed list of workers all of them must answer in time, else
        TimeoutError names those that do not; with a directory they come as they come."""
        self._epoch_ns = time.time_ns() - int(_now_s() * 1e9)
        if self._config.store_url is None:
            await self._members.reconcile(self._config.workers)
            await self._members.wait_connected(connect_timeout_s)
        else:
            self._directory = WorkerDirectory(self._config.store_url, self._config.cluster)
            self._following = asyncio.create_task(self._members.follow(self._directory))
        return self

    def end_all(self) -> None:
        """End every request with REASON_SHUTTING_DOWN and take no more."""
        self._feed(ShutDown())

    async def stop(self) -> None:
        """End everything and free it; harmless after a start that failed."""
        self.end_all()
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
        await self._members.close()
        self._intake.close()
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._directory is not None:
            await self._directory.close()
        if self._event_log is not None:
            self._event_log.close()
            self._event_log = None

    @property
    def model(self) -> ServedModel:
        """The served model, with the limits that every worker keeps."""
        return ServedModel(
            name=self._config.model_name,
            max_model_tokens=self._members.max_model_tokens or self._limits.max_model_tokens or 0,
            vocab_size=self._members.vocab_size or self._limits.vocab_size or 0,
            defaults=self._defaults,
            text=self._text,
        )

    @property
    def ready(self) -> bool:
        """Whether a request could be served."""
        return self._lifecycle.fleet.has_decode

    def on_ready_change(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, from the event loop, whenever `ready` changes."""
        self._ready_listeners.append(listener)

    async def workers_changed(self, timeout_s: float) -> None:
        """Wait until a worker comes, goes, is empty or has flipped, or until the time is over."""
        change = asyncio.get_running_loop().create_future()
        self._change_waiters.append(change)
        try:
            await asyncio.wait([change], timeout=timeout_s)
        finally:
            self._change_waiters.remove(change)

    async def prepare(self, client: ClientRequest) -> GenerationRequest:
        """Check and complete what a client asked for; raises RequestError."""
        return await validate(client, self.model, self._config.classes)

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta | Finished, None]:
        """Run a request; begins with the first iteration, ends with Finished."""
        return items_of(lambda: self.begin(request))

    def begin(self, request: GenerationRequest) -> Answer:
        """Run a request, or join one that was sent before under the same id of the client's.

        Raises RequestError for an id that stands for another request. The answer must be left.
        """
        request_id = request.request_id
        running = self._running.get(request_id)
        content = content_of(request) if request.repeatable else b""
        if running is None and content:
            found = self._replays.find(request_id, _now_s())
            if found is not None and found[0] == content:
                self.metrics.replays.add()
                return Answer(found[1], self.metrics, lambda: None)
        if running is None:
            running = self._admit(request, content)
            self.metrics.took(request.received_s, _now_s())
        elif not content or running.content != content:
            raise RequestError(
                common_pb2.REASON_DUPLICATE_REQUEST_ID,
                f"request_id: {request_id!r} is that of another request, which is running; use a "
                "new one, or none",
                "request_id",
            )
        else:
            self.metrics.replays.add()
        running.readers += 1
        joined = running
        return Answer(running.outbox, self.metrics, lambda: self._left(joined))

    def _left(self, running: _Running) -> None:
        """A client has gone; without any the request ends at once."""
        running.readers -= 1
        request_id = running.request.request_id
        if running.readers == 0 and self._running.get(request_id) is running:
            self._feed(CancelRequested(request_id, common_pb2.REASON_CLIENT_GONE))

    def cancel(self, request_id: str) -> bool:
        """End a request with REASON_CANCELLED; False when it is unknown or has ended."""
        if request_id not in self._running:
            return False
        self._feed(CancelRequested(request_id, common_pb2.REASON_CANCELLED))
        return True

    def explain(self, request_id: str) -> Explanation | None:
        """What happened to a request, while it runs and for some time after."""
        return self._lifecycle.explain(request_id)

    @property
    def match(self) -> MatchReport:
        """How well prefill, link and decode have matched so far."""
        return self._lifecycle.match

    def worker(self, worker_id: str) -> WorkerView | None:
        """What is known of a connected worker."""
        return self._lifecycle.fleet.get(worker_id)

    def drain(self, worker_id: str, resume: bool = False) -> bool:
        """Have a worker finish what it has and take no more; False when it is not connected."""
        if worker_id not in self._lifecycle.fleet:
            return False
        self._feed(DrainRequested(worker_id, resume))
        return True

    def flip(self, worker_id: str, role: Role) -> bool:
        """Have a worker drain and take the other role; False when it is not connected."""
        if worker_id not in self._lifecycle.fleet:
            return False
        self._feed(FlipRequested(worker_id, role))
        return True

    async def status(self) -> RouterStatus:
        """The state of the router and its workers; leases are 0 where no store says otherwise."""
        leases: dict[str, float] = {}
        if self._directory is not None:
            with contextlib.suppress(RedisError, OSError):
                snapshot = await self._directory.snapshot()
                leases = {name: lease_s for name, (_, lease_s) in snapshot.items()}
        now_unix_s = time.time()
        self._feed(Tick())  # so that what is said of the match is of this moment
        fleet, queued = self._lifecycle.fleet, len(self._lifecycle.queue)
        return RouterStatus(
            model=self._config.model_name,
            queued_requests=queued,
            running_requests=len(self._lifecycle.requests) - queued,
            matching=self._matching.recent(self.match),
            workers=tuple(
                WorkerState(
                    record=record,
                    view=fleet.get(record.worker_id),
                    lease_remaining_s=leases.get(record.worker_id, 0.0),
                    uptime_s=max(0.0, now_unix_s - record.started_unix_s),
                )
                for record in sorted(self._members.records, key=lambda r: (r.role, r.worker_id))
            ),
            traffic=self._traffic.message(self._lifecycle.requests.values()),
        )

    async def metrics_text(self) -> str:
        """Everything that is counted, in Prometheus' format."""
        status = await self.status()
        return self.metrics.text(status, self.match, self._intake.load, self._intake.hold_s)

    def _admit(self, request: GenerationRequest, content: bytes) -> _Running:
        request_id = request.request_id
        text = None
        if self._text is not None:
            text = self._text.stream(request.stop, frozenset(request.sampling.stop_token_ids))
        span = self._tracing.begin(
            "request",
            request.traceparent,
            {
                "tandem.request_id": request_id,
                "tandem.prompt_tokens": len(request.token_ids),
            },
        )
        outbox = Outbox(text, bool(request.stop), keeps=request.repeatable)
        running = _Running(request, content, outbox, span)
        self._running[request_id] = running
        self._traffic.came(len(request.token_ids))
        deadline_ms = request.deadline_ms
        self._feed(
            RequestArrived(
                request_id=request_id,
                prompt_tokens=len(request.token_ids),
                max_tokens=request.sampling.max_tokens,
                class_rank=request.class_rank,
                tenant=request.tenant,
                deadline_s=None if deadline_ms is None else _now_s() + deadline_ms / 1e3,
                prefix=self._prefix(request),
            )
        )
        return running

    def _prefix(self, request: GenerationRequest) -> PrefixKeys | None:
        """What finds cached prefixes of a prompt; None while no worker has told of any."""
        block_tokens = self._lifecycle.book.index.block_tokens
        return PrefixKeys.of(request.token_ids, block_tokens) if block_tokens else None

    def _feed(self, event: Event) -> None:
        """Give the core an event; those that its instructions cause come after it, in order."""
        self._inbox.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._inbox:
                event, now_s = self._inbox.popleft(), _now_s()
                instructions = self._lifecycle.handle(event, now_s)
                if self._event_log is not None:
                    print(event_line(event, now_s, instructions), file=self._event_log)
                for instruction in instructions:
                    self._execute(instruction)
                if isinstance(event, (WorkerJoined, WorkerLost, Drained, Flipped)):
                    self._tell_change()
        finally:
            self._handling = False
        if not self._settling:
            # Once for all events of this turn of the loop: a message of a worker brings many.
            self._settling = True
            asyncio.get_running_loop().call_soon(self._settle)

    def _settle(self) -> None:
        """Set the timer, and tell listeners, as the events of this turn have left it."""
        self._settling = False
        if self._stopped:
            return
        self._set_timer()
        if self.ready != self._was_ready:
            self._was_ready = self.ready
            for listener in self._ready_listeners:
                listener()

    def _tell_change(self) -> None:
        for waiter in self._change_waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _execute(self, instruction: Instruction) -> None:
        match instruction:
            case Deliver():
                self._deliver(instruction)
            case Finish():
                self._finish(instruction)
            case SendCancel() | SendRenew() | SendMigrate() | SendDrain() | SendFlip():
                layout = ""
                if isinstance(instruction, SendFlip):
                    layout = self._members.layout_of(instruction.role)
                self._members.send(instruction.worker_id, order_command(instruction, layout))
            case SendReserve() | SendPrefill():
                running = self._running[instruction.request_id]
                command = command_for(instruction, running.request, running.span.traceparent)
                self._members.send(instruction.worker_id, command)

    def _deliver(self, instruction: Deliver) -> None:
        running = self._running[instruction.request_id]
        logprobs = instruction.logprobs if running.request.sampling.logprobs else ()
        running.outbox.push(instruction.token_ids, logprobs, _now_s())
        if running.outbox.stopped:
            stop = CancelRequested(instruction.request_id, common_pb2.REASON_STOP_STRING)
            self._inbox.append(stop)

    def _finish(self, instruction: Finish) -> None:
        running = self._running.pop(instruction.request_id)
        running.outbox.finish(instruction)
        self.metrics.finished(running.outbox.finished)
        if running.outbox.finished is not None:
            rank = running.request.class_rank
            self._traffic.ended(running.outbox.finished, rank, self._policy)
        if running.content and instruction.reason in WELL:
            self._replays.keep(instruction.request_id, running.content, running.outbox, _now_s())
        if self._tracing.enabled:
            report = instruction.report
            record_waits(self._tracing, running.span.traceparent, report, self._epoch_ns)
            running.span.end(
                {
                    "reason": reason_name(instruction.reason),
                    "completion_tokens": report.completion_tokens,
                    "prefill_worker": report.prefill_worker,
                    "decode_worker": report.decode_worker,
                }
            )

    def _set_timer(self) -> None:
        """Have a Tick come when the next deadline runs out."""
        due_s = self._lifecycle.next_deadline_s
        if due_s == self._timer_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = due_s
        if due_s is not None:
            delay_s = max(0.0, due_s - _now_s())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = self._timer_s = None
        self._feed(Tick())


def policy_of(config: RouterConfig) -> Policy:
    """What a router's configuration means for its core."""
    return Policy(
        classes=tuple(
            ClassPolicy(one.name, one.ttft_ms / 1e3, one.itl_ms / 1e3, one.weight)
            for one in config.classes
        ),
        tenants={
            tenant.name: TenantPolicy(tenant.weight, tenant.tokens_per_s, tenant.burst_tokens)
            for tenant in config.tenants
        },
        queue_limit=config.queue_limit,
        local_prefill_tokens=config.local_prefill_tokens,
        max_retries=config.max_retries,
        silence_s=config.silence_s,
        orphan_grace_s=config.orphan_grace_s,
    )


def _now_s() -> float:
    # Not the loop's time: uvloop's moves in whole milliseconds.
    return time.monotonic()
