"""Every request that a worker holds: how it is taken in, what is said of it, and its one way out.

Exists so that requests which end or fail leave nothing behind, whoever ends them: memory, the
scheduler's queues and the span are given back in `forget` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator

from protos.tandem.v1.common_pb2 import (
    REASON_INVALID_ARGUMENT,
    REASON_OUT_OF_CAPACITY,
    ReasonCode,
)
from workers.engine.commands import WorkItem
from workers.engine.events import Ended, StepEvents
from workers.engine.native.scheduler import Scheduler
from workers.engine.native.sequence import Sequence, Stage
from workers.engine.sampling.grammar import GrammarCompiler, GrammarError
from workers.engine.sampling.state import SamplingState
from workers.state.memory import StateMemory
from workers.telemetry import Tracing


class Requests:
    """Owns the sequences, by key, and the events of the step under way."""

    def __init__(
        self,
        scheduler: Scheduler,
        memory: StateMemory,
        grammars: GrammarCompiler,
        tracing: Tracing,
        most_draft_tokens: int,
    ) -> None:
        """`most_draft_tokens` is the longest draft of any step: memory must reach that far."""
        self.events = StepEvents()
        self._scheduler = scheduler
        self._memory = memory
        self._grammars = grammars
        self._tracing = tracing
        self._most_draft_tokens = most_draft_tokens
        self._sequences: dict[int, Sequence] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    def __contains__(self, key: int) -> bool:
        return key in self._sequences

    def __getitem__(self, key: int) -> Sequence:
        return self._sequences[key]

    def get(self, key: int) -> Sequence | None:
        """The request of that key, unless it has ended."""
        return self._sequences.get(key)

    @property
    def free_slots(self) -> int:
        """How many more may be taken in; memory in quarantine holds a slot too."""
        memory = self._memory
        return memory.max_requests - memory.quarantined - len(self._sequences)

    def take_events(self) -> StepEvents:
        """What happened since the last call."""
        events, self.events = self.events, StepEvents()
        return events

    def accept(self, item: WorkItem, token_ids: tuple[int, ...]) -> Sequence | None:
        """Take a request in, or say why not."""
        generated = token_ids[len(token_ids) - item.generated_tokens :]
        prompt = token_ids[: len(token_ids) - item.generated_tokens]
        needed = len(prompt) + item.sampling.max_tokens + self._most_draft_tokens
        problem = None
        if not prompt or item.sampling.max_tokens < max(len(generated), 1):
            problem = REASON_INVALID_ARGUMENT, "a request needs prompt tokens and room to answer"
        elif needed > self._memory.total_tokens:
            problem = (
                REASON_OUT_OF_CAPACITY,
                f"{needed} tokens needed with drafts, of {self._memory.total_tokens} in all",
            )
        elif self.free_slots <= 0:
            problem = (
                REASON_OUT_OF_CAPACITY,
                f"all {self._memory.max_requests} state slots are in use",
            )
        matcher = None
        try:
            matcher = self._grammars.compile(item.sampling)
        except GrammarError as error:
            problem = REASON_INVALID_ARGUMENT, str(error)
        if problem is not None:
            self.refuse(item, *problem)
            return None
        self._arrivals += 1
        sampling = SamplingState(item.sampling, prompt, matcher)
        for token_id in generated:
            sampling.append(token_id)
        if sampling.ended is not None:
            # Whoever made these tokens could not say any more that they were all.
            self.events.ended.append(Ended(item.key, sampling.ended.reason))
            return None
        sequence = Sequence(item, Stage.WAITING, self._arrivals, sampling, prompt)
        self._sequences[item.key] = sequence
        return sequence

    def refuse(self, item: WorkItem, reason: ReasonCode.ValueType, detail: str) -> None:
        """A request is not taken in, or not after all while it holds nothing."""
        self._sequences.pop(item.key, None)
        self.events.ended.append(Ended(item.key, reason, detail))

    def end(
        self,
        sequence: Sequence,
        reason: ReasonCode.ValueType,
        detail: str,
        *,
        quarantined: bool = False,
    ) -> None:
        """Say how a request ended, and forget it."""
        self.events.ended.append(
            Ended(sequence.item.key, reason, detail, sequence.speculation.report())
        )
        self.forget(sequence, quarantined=quarantined)

    def forget(self, sequence: Sequence, *, quarantined: bool = False) -> None:
        """Give back all that a request holds; memory that is `quarantined` stays set apart."""
        if sequence.span is not None:
            sequence.span.end({"tandem.output_tokens": len(sequence.output)})
        self._scheduler.remove(sequence)
        if quarantined:
            self._memory.quarantine(sequence.item.key)
        elif sequence.stage is not Stage.WAITING:
            self._memory.free(sequence.item.key)
        del self._sequences[sequence.item.key]

    def clear(self) -> None:
        """Drop everything, because the worker ends."""
        self._sequences.clear()

    def begin_span(self, sequence: Sequence, name: str) -> None:
        """The next part of a request's life, in its trace."""
        item = sequence.item
        sequence.span = self._tracing.begin(
            name, item.traceparent, {"tandem.request_id": item.request_id}
        )
