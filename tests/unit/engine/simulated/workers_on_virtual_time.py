"""Simulated engines on one virtual clock, with their hand-offs carried by hand."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from protos.tandem.v1.inference_pb2 import HandoffReport
from workers.engine.commands import Command, Sampling, WorkItem
from workers.engine.events import Ended, StepEvents
from workers.engine.simulated.engine import SimulatedEngine
from workers.engine.simulated.limits import Limits
from workers.engine.simulated.prefixes import Prefixes
from workers.engine.simulated.times import LinearTimes
from workers.engine.surroundings import Identity, Surroundings

VOCAB = 1000
TIMES = LinearTimes(
    step_ms=2.0, prompt_token_us=1000.0, row_us=500.0, transfer_ms=3.0, bytes_per_s=1e12
)


def item(key: int, prompt_tokens: int, **sampling: object) -> WorkItem:
    fields: dict[str, object] = {"max_tokens": 8, **sampling}
    return WorkItem(key, f"r{key}", Sampling(**fields), prompt_tokens)  # type: ignore[arg-type]


@dataclass
class Seen:
    """What one engine said, with when it said it."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    next_index: dict[int, int] = field(default_factory=dict)
    token_times_s: dict[int, list[float]] = field(default_factory=dict)
    ended: dict[int, Ended] = field(default_factory=dict)
    events: list[StepEvents] = field(default_factory=list)
    handoffs: list[HandoffReport] = field(default_factory=list)


class VirtualWorkers:
    """So many engines that hand state to each other; time passes only in `run`."""

    def __init__(
        self,
        names: tuple[str, ...] = ("only",),
        max_requests: int = 4,
        kv_tokens: int = 1000,
        step_tokens: int = 16,
        lease_s: float = 5.0,
        drop_notifications: bool = False,
        fingerprints: dict[str, str] | None = None,
    ) -> None:
        self.now_s = 100.0
        self._drop = drop_notifications
        self._mail: list[tuple[str, bytes]] = []
        limits = Limits(max_requests, kv_tokens, step_tokens, VOCAB, lease_s)
        self.engines = {
            name: SimulatedEngine(
                Surroundings(
                    Identity(name, (fingerprints or {}).get(name, "f"), 0, name),
                    lambda address, data: self._mail.append((address, data)),
                    lambda: self.now_s,
                    random.Random(1),
                ),
                limits,
                TIMES,
                Prefixes(4, 8, 16),
            )
            for name in names
        }
        self.seen = {name: Seen() for name in names}

    def tell(self, name: str, command: Command) -> None:
        self.engines[name].handle(command)

    def step(self, name: str) -> StepEvents:
        """One step, with what it says noted."""
        events, seen = self.engines[name].step(), self.seen[name]
        seen.events.append(events)
        for row in events.tokens:
            ids = seen.tokens.setdefault(row.key, [])
            due = seen.next_index.setdefault(row.key, min(row.first_index, 1))
            assert row.first_index == due, "a token is missing or came twice"
            seen.next_index[row.key] += len(row.chosen)
            ids.extend(choice.token_id for choice in row.chosen)
            seen.token_times_s.setdefault(row.key, []).append(self.now_s)
        for ended in events.ended:
            assert ended.key not in seen.ended, "a request ended twice"
            seen.ended[ended.key] = ended
        seen.handoffs.extend(done.handoff for done in events.prefill_done if done.handoff)
        return events

    def run(self, until_s: float = 1e9) -> None:
        """Let time pass until nothing is left to do, or to `until_s` from the beginning."""
        end_s = 100.0 + until_s
        while True:
            for address, data in self._mail:
                if not self._drop:
                    self.engines[address].arrived(data)
            self._mail.clear()
            waits = {name: engine.idle_s for name, engine in self.engines.items()}
            due = {name: wait_s for name, wait_s in waits.items() if wait_s is not None}
            if not due:
                return
            name = min(due, key=lambda each: due[each])
            if self.now_s + due[name] > end_s:
                self.now_s = end_s
                return
            self.now_s += due[name]
            self.step(name)
