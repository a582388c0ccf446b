"""The prompts that one worker has to read, and how much of which goes into the next step.

Prompts that were begun go on first, then by class and arrival; each gets what the step's budget
leaves, as in the native engine's scheduler.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Final

from orchestrator.simulator.jobs import Job
from orchestrator.simulator.prefixes import PrefixCache


@dataclass(slots=True, init=False)
class Chunks:
    """What a step reads: of whom how many tokens, all together, and to how many tokens each of
    them attends on average."""

    parts: Final[list[tuple[Job, int]]]
    tokens: Final[int]
    mean_context: Final[float]

    def __init__(
        self,
        parts: list[tuple[Job, int]],
        tokens: int,
        mean_context: float,
    ) -> None:
        self.parts = parts
        self.tokens = tokens
        self.mean_context = mean_context


def _order(job: Job) -> tuple[int, int]:
    return (job.priority, job.handle)


class ReadingQueue:
    """Owns the order of prompts."""

    __slots__ = ("_begun", "_cache", "_waiting", "unread_tokens")

    def __init__(self, cache: PrefixCache | None) -> None:
        self._cache = cache
        self._begun: list[Job] = []
        self._waiting: list[Job] = []
        self.unread_tokens = 0

    def __bool__(self) -> bool:
        return bool(self._begun or self._waiting)

    def add(self, job: Job) -> None:
        """A prompt that nothing was read of."""
        self.unread_tokens += job.prompt_tokens
        waiting = self._waiting
        if not waiting or _order(waiting[-1]) < _order(job):
            waiting.append(job)
        else:
            bisect.insort(waiting, job, key=_order)

    def remove(self, job: Job) -> None:
        """Take a prompt out, if it is here."""
        for jobs in (self._begun, self._waiting):
            if job in jobs:
                jobs.remove(job)
                self.unread_tokens -= job.unread_tokens

    def chunks(self, budget: int, now_s: float) -> Chunks:
        """The next step's; there must be something to read."""
        begun, waiting = self._begun, self._waiting
        left = sum([job.prompt_tokens - job.read_tokens for job in begun]) if begun else 0
        while waiting and left < budget:
            job = waiting.pop(0)
            job.started_s = now_s
            if self._cache is not None and job.names:
                job.read_tokens = job.cached_tokens = self._cache.longest(
                    job.names, job.prompt_tokens
                )
                self.unread_tokens -= job.cached_tokens
            begun.append(job)
            left += job.prompt_tokens - job.read_tokens
        parts, total, pairs = [], 0, 0.0
        for job in begun:
            tokens = job.prompt_tokens - job.read_tokens
            if tokens > budget - total:
                tokens = budget - total
                if not tokens:
                    break
            parts.append((job, tokens))
            total += tokens
            pairs += tokens * (job.read_tokens + tokens / 2.0)
        return Chunks(parts, total, pairs / total)

    def read(self, chunks: Chunks, now_s: float) -> list[Job]:
        """The step has ended; returns whom it read something of and who is still wanted."""
        seen = []
        for job, tokens in chunks.parts:
            if not job.live:
                continue
            job.read_tokens += tokens
            self.unread_tokens -= tokens
            if job.read_tokens == job.prompt_tokens:
                job.prefill_s = now_s - job.started_s
                self._begun.remove(job)
                if self._cache is not None and job.names:
                    self._cache.remember(job.names)
            seen.append(job)
        return seen
