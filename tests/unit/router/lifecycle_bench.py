"""A lifecycle on virtual time, for tests that walk one path each."""

from __future__ import annotations

from protos.tandem.v1 import common_pb2
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from protos.tandem.v1.inference_pb2 import HandoffReport
from router.core.events import (
    CreditsChanged,
    Event,
    PrefillDone,
    RequestArrived,
    Reserved,
    Role,
    StateArrived,
    TokensArrived,
    WorkerJoined,
)
from router.core.instructions import (
    Deliver,
    Finish,
    Instruction,
    SendPrefill,
    SendReserve,
)
from router.core.lifecycle import Lifecycle
from router.core.policy import ClassPolicy, Policy
from router.core.request import State

TICKET = HandoffTicket(reservation=7)
LENGTH = common_pb2.REASON_LENGTH


HANDOFF = HandoffReport(kv_bytes=5)
CLASSES = (ClassPolicy("strict", 0.5, 0.04, 4.0), ClassPolicy("batch", 10.0, 0.2, 1.0))


class Bench:
    """A lifecycle with a clock that only the test moves."""

    def __init__(
        self, *workers: str, queue_limit: int = 4, slots: int = 2, **policy: object
    ) -> None:
        """Workers are named p... or d... for their role; prompts are never read by decode unless
        the policy says so."""
        fields = {"classes": CLASSES, "local_prefill_tokens": 0, "local_prefill_share": 0.0}
        fields |= {"queue_limit": queue_limit, **policy}
        self.core = Lifecycle(Policy(**fields), validate=True)  # type: ignore[arg-type]
        self.now_s = 100.0
        for worker in workers:
            self.join(worker, slots)

    def join(self, worker: str, slots: int = 2, version: str = "v") -> None:
        role: Role = "prefill" if worker.startswith("p") else "decode"
        self.feed(WorkerJoined(worker, role, version))
        self.feed(CreditsChanged(worker, slots, 100, 100))

    def join_instructions(self, worker: str) -> list[Instruction]:
        """As `join`, for those who want to know what comes of it."""
        role: Role = "prefill" if worker.startswith("p") else "decode"
        out = self.feed(WorkerJoined(worker, role, "v"))
        return out + self.feed(CreditsChanged(worker, 2, 100, 100))

    def feed(self, event: Event, after_s: float = 0.0) -> list[Instruction]:
        self.now_s += after_s
        return self.core.handle(event, self.now_s)

    def request(self, name: str = "r", max_tokens: int = 5, **fields: object) -> list[Instruction]:
        return self.feed(RequestArrived(name, 10, max_tokens, **fields))  # type: ignore[arg-type]

    @property
    def due_s(self) -> float | None:
        """When the core wants a Tick."""
        return self.core.next_deadline_s

    def state(self, name: str = "r") -> State:
        explanation = self.core.explain(name)
        assert explanation is not None
        return explanation.state

    def prefilling(self) -> None:
        """Bring request r, handle 1, to where p reads its prompt for d."""
        assert self.request() == [SendReserve("d", 1, "r")]
        assert self.feed(Reserved("d", 1, TICKET)) == [SendPrefill("p", 1, "r", TICKET)]
        assert self.state() is State.PREFILLING

    def decoding(self) -> None:
        """Bring request r, handle 1, to where d decodes, with token 0 delivered."""
        self.prefilling()
        self.feed(tokens("p", 0, 40))
        self.feed(PrefillDone("p", 1, 3.0, HANDOFF))
        assert self.state() is State.HANDING_OFF
        self.feed(StateArrived("d", 1))
        assert self.state() is State.DECODING

    def nothing_is_held(self) -> bool:
        return not self.core.holdings.attempts and all(
            not view.holds for view in self.core.fleet.all()
        )


def tokens(worker: str, first: int, *ids: int, handle: int = 1) -> TokensArrived:
    return TokensArrived(worker, [handle], [first], [len(ids)], list(ids), [])


def deliver(first: int, *ids: int) -> Deliver:
    return Deliver("r", first, list(ids), [])


def the_finish(out: list[Instruction]) -> Finish:
    (finish,) = [item for item in out if isinstance(item, Finish)]
    return finish
