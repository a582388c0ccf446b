"""The requests that decode together in one worker, counted in steps instead of tokens.

When a request joins, the step at whose end it is finished is known, so nothing has to be done for
it until then: the batch keeps sums, and its members in the order in which they finish.
"""

from __future__ import annotations

import heapq

from orchestrator.simulator.jobs import Job


class Batch:
    """Who decodes. Contexts and growth are of all members together, in tokens."""

    __slots__ = ("_ends", "context_tokens", "count", "growth_tokens", "step")

    def __init__(self) -> None:
        self.count = 0
        self.step = 0  # steps that have ended
        self.context_tokens = 0.0
        self.growth_tokens = 0.0
        self._ends: list[tuple[int, int, Job]] = []

    def join(self, job: Job, steps: int) -> None:
        """From the next step on a request makes what is left of its answer, in so many steps."""
        begin = job.begin_step = self.step
        end = job.end_step = begin + steps
        per_step = job.per_step = (job.answer_tokens - job.made_tokens) / steps
        self.count += 1
        self.context_tokens += job.context_tokens
        self.growth_tokens += per_step
        heapq.heappush(self._ends, (end, job.handle, job))

    def leave(self, job: Job) -> None:
        """Between two steps a request goes."""
        self.count -= 1
        if not self.count:
            # What rounding has left would add up.
            self.context_tokens = self.growth_tokens = 0.0
            return
        per_step = job.per_step
        self.context_tokens -= job.context_tokens + (self.step - job.begin_step) * per_step
        self.growth_tokens -= per_step

    def steps_to_next_end(self) -> int:
        """Until somebody finishes."""
        ends = self._ends
        while not ends[0][2].live:
            heapq.heappop(ends)
        return ends[0][0] - self.step

    def pass_steps(self, steps: int) -> None:
        """So many steps end, with nobody's answer."""
        self.step += steps
        self.context_tokens += self.growth_tokens * steps

    def advance(self, steps: int) -> list[Job]:
        """So many steps have ended; those that are finished leave, in the order of handles."""
        step = self.step = self.step + steps
        self.context_tokens += self.growth_tokens * steps
        ends = self._ends
        done: list[Job] = []
        while ends and ends[0][0] <= step:
            job = heapq.heappop(ends)[2]
            if job.live:
                done.append(job)
                self.leave(job)
        return done

    def members(self) -> list[Job]:
        """In the order of their handles."""
        return sorted((job for _, _, job in self._ends if job.live), key=lambda job: job.handle)
