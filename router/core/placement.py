"""Which pair of workers takes a request: one that can take it now, the least loaded first.

The pair is chosen jointly: a decode worker is only worth reserving where a prefill worker that
can hand state to it has room as well. Equal loads are told apart by name, so that the same
events always lead to the same choice.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.core.fleet import Fleet, WorkerView


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request goes; without `prefill` the decode worker reads the prompt itself."""

    decode: WorkerView
    prefill: WorkerView | None


def choose(fleet: Fleet, prompt_tokens: int, max_tokens: int) -> Placement | None:
    """The best pair that can take the request now; None when it must wait."""
    needed_tokens = prompt_tokens + max_tokens
    candidates = [view for view in fleet.of_role("decode") if view.can_take(needed_tokens)]
    for decode in sorted(candidates, key=_load):
        readers = [
            view
            for view in fleet.of_role("prefill")
            if view.model_version == decode.model_version and view.could_ever_take(prompt_tokens)
        ]
        if not readers:
            return Placement(decode, None)
        free = [view for view in readers if view.can_take(prompt_tokens)]
        if free:
            return Placement(decode, min(free, key=_load))
    return None


def fits_nowhere(fleet: Fleet, prompt_tokens: int, max_tokens: int) -> bool:
    """Whether waiting is in vain: the request is larger than every decode worker."""
    needed_tokens = prompt_tokens + max_tokens
    return not any(view.could_ever_take(needed_tokens) for view in fleet.of_role("decode"))


def _load(view: WorkerView) -> tuple[int, int, str]:
    return (len(view.holds), view.held_tokens, view.worker_id)
