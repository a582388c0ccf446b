"""A cluster on virtual time: prefill workers that read in turn, decode workers that keep a step.

Enough of a worker to see what placement does to waiting times; nothing runs, so hours take seconds.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from protos.tandem.v1 import common_pb2
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from protos.tandem.v1.inference_pb2 import HandoffReport
from router.core.events import (
    CacheChanged,
    CreditsChanged,
    Ended,
    Event,
    LoadChanged,
    PrefillDone,
    RequestArrived,
    Reserved,
    Role,
    StateArrived,
    TokensArrived,
    WorkerJoined,
)
from router.core.instructions import Deliver, Finish, SendPrefill, SendReserve
from router.core.lifecycle import Lifecycle
from router.core.policy import Policy
from router.core.prefixes import PrefixKeys

BLOCK_TOKENS = 16
SLOTS = 64


@dataclass
class Reader:
    """A prefill worker: one prompt after another, at a rate, sparing what it has cached."""

    worker_id: str
    tokens_per_s: float
    free_s: float = 0.0
    cached: dict[int, int] = field(default_factory=dict)  # name of a prefix -> tokens
    work_seen: int = 0
    waiting: int = 0


class VirtualCluster:
    """Feeds a lifecycle with what such workers would say, and notes when tokens come."""

    def __init__(
        self,
        policy: Policy,
        readers: dict[str, float],
        decoders: int = 2,
        decode_s: float = 0.2,
        transfer_s: float = 0.001,
        slots: int = SLOTS,
        tell_cache: bool = True,
    ) -> None:
        """`readers`: tokens per second by name. An answer takes `decode_s`."""
        self.core = Lifecycle(policy, validate=True)
        self.now_s = 0.0
        self.ttft_s: dict[str, float] = {}
        self.finished: dict[str, Finish] = {}
        self.read_by: Counter[str] = Counter()
        self.most_waiting_state = 0
        self._decode_s = decode_s
        self._transfer_s = transfer_s
        self._tell_cache = tell_cache
        self._arrived_s: dict[str, float] = {}
        self._prompts: dict[str, list[int]] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._decoders = {f"d{n}": 0 for n in range(decoders)}
        self._readers = {name: Reader(name, rate) for name, rate in readers.items()}
        for name in self._decoders:
            self._join(name, "decode", slots)
        for name, rate in readers.items():
            self._join(name, "prefill", slots)
            self._feed(LoadChanged(name, prefill_tokens_per_s=rate))

    def _join(self, name: str, role: Role, slots: int) -> None:
        self._feed(WorkerJoined(name, role, "v"))
        self._feed(CreditsChanged(name, slots, 10**6, 10**6, slots))

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), action))

    def request(self, when_s: float, name: str, prompt: list[int], max_tokens: int = 8) -> None:
        """A client asks at that time."""

        def arrive() -> None:
            self._arrived_s[name], self._prompts[name] = self.now_s, prompt
            keys = PrefixKeys.of(prompt, BLOCK_TOKENS)
            self._feed(RequestArrived(name, len(prompt), max_tokens, prefix=keys))

        self.at(when_s, arrive)

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._events:
            self.now_s, _, action = heapq.heappop(self._events)
            action()

    def _feed(self, event: Event) -> None:
        for out in self.core.handle(event, self.now_s):
            match out:
                case Deliver(request_id, 0):
                    self.ttft_s[request_id] = self.now_s - self._arrived_s[request_id]
                case Finish():
                    self.finished[out.request_id] = out
                case SendReserve(worker_id, handle):
                    ticket = HandoffTicket(reservation=handle)
                    self._later(0.0, Reserved(worker_id, handle, ticket))
                case SendPrefill():
                    self._read(out)

    def _later(self, delay_s: float, *events: Event) -> None:
        def act() -> None:
            for event in events:
                self._feed(event)

        self.at(self.now_s + delay_s, act)

    def _read(self, out: SendPrefill) -> None:
        prompt = self._prompts[out.request_id]
        decoder = self.core.requests[out.request_id].decode_worker
        limit = self.core.requests[out.request_id].max_tokens
        self.read_by[out.worker_id] += 1
        if out.ticket is None:
            read_s = len(prompt) / 10_000.0
            self._answer(out.worker_id, out.handle, limit, read_s, first=0)
            return
        reader = self._readers[out.worker_id]
        keys = PrefixKeys.of(prompt, BLOCK_TOKENS)
        names = keys.names[1 : (len(prompt) - 1) // BLOCK_TOKENS + 1]
        known = max((reader.cached.get(name, 0) for name in names), default=0)
        begin_s = max(self.now_s, reader.free_s)
        reader.free_s = begin_s + (len(prompt) - known) / reader.tokens_per_s
        reader.waiting += len(prompt) - known

        def done() -> None:
            reader.waiting -= len(prompt) - known
            new = [name for name in names if name not in reader.cached]
            states = []
            for count, name in enumerate(names, start=1):
                reader.cached[name] = count * BLOCK_TOKENS
                states.append((name, name, count * BLOCK_TOKENS))
            self._feed(TokensArrived(reader.worker_id, [out.handle], [0], [1], [0]))
            if self._tell_cache and new:
                event = CacheChanged(reader.worker_id, BLOCK_TOKENS, False, new, (), states)
                self._feed(event)
            report = HandoffReport(kv_bytes=len(prompt), transfer_ms=self._transfer_s * 1e3)
            self._later(
                self._transfer_s,
                PrefillDone(reader.worker_id, out.handle, 1.0, report),
                StateArrived(decoder, out.handle),
            )
            self._answer(decoder, out.handle, limit, self._transfer_s, first=1)

        self.at(reader.free_s, done)

    def _answer(self, worker: str, handle: int, limit: int, delay_s: float, first: int) -> None:
        ids = list(range(first, limit))
        self._later(
            delay_s + self._decode_s,
            TokensArrived(worker, [handle], [first], [len(ids)], ids),
            Ended(worker, handle, common_pb2.REASON_LENGTH),
        )


def percentile(values: list[float], share: float) -> float:
    """The value that a share of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
