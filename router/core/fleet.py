"""The router's view of its workers: what each said it can take, and what it was given since.

Credits are absolute, as of when the worker sent them, so commands on their way are not in them.
The router therefore trusts the smaller of two numbers: the last credits, and the most it was ever
offered less what it has handed out. Neither overcommits alone or together while nobody else
feeds the worker; where somebody does, the worker refuses and the request goes back to the queue.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from router.core.events import CreditsChanged, Role, WorkerJoined


@dataclass(slots=True, eq=False)
class WorkerView:
    """One connected worker. `holds` maps handles to the tokens they may come to occupy there."""

    worker_id: str
    role: Role
    model_version: str
    credits: CreditsChanged | None = None
    most_slots: int = 0
    holds: dict[int, int] = field(default_factory=dict)
    held_tokens: int = 0
    # It refused work that its credits allowed: wait for news before sending more.
    refused: bool = False

    @property
    def free_slots(self) -> int:
        if self.credits is None:
            return 0
        return max(0, min(self.credits.request_slots, self.most_slots - len(self.holds)))

    @property
    def free_tokens(self) -> int:
        if self.credits is None:
            return 0
        return max(0, min(self.credits.free_tokens, self.total_tokens - self.held_tokens))

    @property
    def total_tokens(self) -> int:
        return 0 if self.credits is None else self.credits.total_tokens

    def can_take(self, tokens: int) -> bool:
        """Whether one more request of so many tokens fits now."""
        return not self.refused and self.free_slots > 0 and self.free_tokens >= tokens

    def could_ever_take(self, tokens: int) -> bool:
        """Whether it would fit into an idle worker; yes while its size is unknown."""
        return self.credits is None or self.credits.total_tokens >= tokens

    def update(self, credits: CreditsChanged) -> None:
        self.credits = credits
        self.most_slots = max(self.most_slots, credits.request_slots)
        self.refused = False

    def hold(self, handle: int, tokens: int) -> None:
        self.holds[handle] = tokens
        self.held_tokens += tokens

    def release(self, handle: int) -> None:
        self.held_tokens -= self.holds.pop(handle)
        self.refused = False


class Fleet:
    """All connected workers by role."""

    def __init__(self) -> None:
        self._workers: dict[str, WorkerView] = {}
        self._by_role: dict[Role, dict[str, WorkerView]] = {"prefill": {}, "decode": {}}

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._workers

    def get(self, worker_id: str) -> WorkerView | None:
        return self._workers.get(worker_id)

    def all(self) -> Iterable[WorkerView]:
        return self._workers.values()

    def of_role(self, role: Role) -> Iterable[WorkerView]:
        return self._by_role[role].values()

    @property
    def has_decode(self) -> bool:
        return bool(self._by_role["decode"])

    def join(self, event: WorkerJoined) -> None:
        """Add a worker that holds nothing of ours."""
        view = WorkerView(event.worker_id, event.role, event.model_version)
        self._workers[event.worker_id] = view
        self._by_role[event.role][event.worker_id] = view

    def leave(self, worker_id: str) -> WorkerView | None:
        """Take a worker out, with what it held."""
        view = self._workers.pop(worker_id, None)
        if view is not None:
            del self._by_role[view.role][worker_id]
        return view
