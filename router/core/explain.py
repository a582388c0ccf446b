"""The story of a request, for `tandem why`: what it waited for, what was weighed, where it ran.

Pure data: whoever shows it turns seconds of the router's clock into what people read.
"""

from __future__ import annotations

from dataclasses import dataclass

from protos.tandem.v1 import common_pb2
from router.core.placement import Blocked, Candidate
from router.core.reasons import reason_name
from router.core.request import Decision, Request, State, Transition


@dataclass(frozen=True, slots=True)
class Explanation:
    """What happened to one request and where. Moments are on the router's clock.

    Attributes:
        transitions: every state it was in, with the cause, and the reason of each failure.
        decisions: every placement: all candidates with what was expected of them.
        waited_s: while it was queued, what the queue's first waited for, by resource.
        retries: attempts that failed.
    """

    request_id: str
    state: State
    prefill_worker: str
    decode_worker: str
    transitions: tuple[Transition, ...]
    decisions: tuple[Decision, ...] = ()
    waited_s: tuple[tuple[str, float], ...] = ()
    retries: int = 0

    def lines(self) -> list[str]:
        """For people: one line for each thing that happened, times in ms since the arrival."""
        began_s = self.transitions[0].at_s
        stories = [(step.at_s, 1, _transition_line(step)) for step in self.transitions]
        for decision in self.decisions:
            stories += [
                (decision.at_s, 0, _candidate_line(candidate, candidate is decision.chosen))
                for candidate in decision.candidates
            ]
        stories.sort(key=lambda story: story[:2])
        lines = [f"{(at_s - began_s) * 1e3:10.1f} ms  {line}" for at_s, _, line in stories]
        waits = ", ".join(f"{name} {s * 1e3:.1f} ms" for name, s in self.waited_s if s > 0.0)
        return [*lines, f"waited for {waits}"] if waits else lines


def explain(request: Request) -> Explanation:
    """What is remembered of a request, live or ended."""
    totals = [0.0] * len(Blocked)
    for decision in request.decisions:
        totals = [total + s for total, s in zip(totals, decision.waited_s, strict=True)]
    return Explanation(
        request_id=request.request_id,
        state=request.state,
        prefill_worker=request.prefill_worker,
        decode_worker=request.decode_worker,
        transitions=tuple(request.transitions),
        decisions=tuple(request.decisions),
        waited_s=tuple(zip((name.value for name in Blocked), totals, strict=True)),
        retries=request.retries,
    )


def _transition_line(step: Transition) -> str:
    line = f"{step.state}: {step.cause}"
    if step.reason != common_pb2.REASON_UNSPECIFIED:
        line += f" ({reason_name(step.reason)})"
    return f"{line}: {step.detail}" if step.detail else line


def _candidate_line(candidate: Candidate, chosen: bool) -> str:
    where = f"{candidate.prefill or 'itself'} -> {candidate.decode}"
    verdict = "chosen" if chosen else f"full: {candidate.refused}" if candidate.refused else "not"
    return (
        f"candidate {where}: {candidate.expected_s * 1e3:.1f} ms"
        f" = wait {candidate.wait_s * 1e3:.1f}"
        f" + read {candidate.uncached_tokens} tokens {candidate.read_s * 1e3:.1f}"
        f" + transfer {candidate.transfer_s * 1e3:.1f} + step {candidate.step_s * 1e3:.1f}"
        f" [{verdict}]"
    )
