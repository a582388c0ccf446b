"""Whatever fails, and wherever a hand-off then is: both sides free all they hold and learn why.

One table: what happens, at which state of the hand-off, and what each side says in the end. The
sides are the hand-off layers of two workers; the one that is killed or stopped runs in a process of
its own. Time is the test's: leases and time limits run out when the test says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import cast

import psutil
import pytest

from protos.tandem.v1.common_pb2 import (
    REASON_CANCELLED,
    REASON_CHECKSUM_MISMATCH,
    REASON_LEASE_EXPIRED,
    REASON_OUT_OF_CAPACITY,
    REASON_TRANSFER_FAILED,
)
from tests.integration.handoff.workers import (
    LEASE_S,
    TIMEOUT_S,
    Driven,
    Remote,
    Setup,
    Worker,
    wait,
)
from tests.unit.state.shapes import SMALL
from workers.handoff.handoffs import Outcome
from workers.handoff.receiver import Arrival, Refusal, Released
from workers.handoff.sender import SendFailed, Sent
from workers.parallel.layout import ParallelLayout
from workers.state.layout import StateLayout

HANDLE, TOKENS, CHUNK = 5, 40, 24
PREFILL = Setup("prefill", StateLayout(SMALL, ParallelLayout.tensor_parallel(2)), blocks=16)
DECODE = Setup("decode", StateLayout(SMALL, ParallelLayout(kvp=2, tpf=2, interleave=2)), blocks=12)


class State(Enum):
    """How far a hand-off is."""

    RESERVED = auto()  # prefill has the ticket and has done nothing with it
    GRANTED = auto()  # decode waits for this writer, nothing is written
    PUSHED = auto()  # a part of the KV is in decode's memory
    WRITTEN = auto()  # all is in decode's memory, its rank 0 has not heard of it


@dataclass(slots=True)
class Case:
    """Two workers, one of which may be in another process, and a hand-off between them."""

    prefill: Worker | Remote
    decode: Worker | Remote
    ticket: bytes = b""

    def ask(
        self, worker: Worker | Remote, method: str, *arguments: object, **keywords: object
    ) -> object:
        if isinstance(worker, Remote):
            return worker.ask(method, *arguments, **keywords)
        return getattr(worker, method)(*arguments, **keywords)

    def seen(self, worker: Worker | Remote) -> list[Outcome]:
        return cast("list[Outcome]", self.ask(worker, "seen"))

    @property
    def both(self) -> tuple[Driven, Driven]:
        return self.prefill, self.decode

    def reach(self, state: State) -> None:
        """Bring the hand-off to a state."""
        self.ticket = cast("bytes", self.ask(self.decode, "reserve", HANDLE, TOKENS))
        if state is State.RESERVED:
            return
        self.ask(self.prefill, "open", HANDLE, self.ticket, TOKENS)
        wait(lambda: bool(self.ask(self.prefill, "granted", HANDLE)), self.both, "leave to write")
        if state is State.GRANTED:
            return
        self.ask(self.prefill, "advance", HANDLE, CHUNK)
        wait(lambda: bool(self.ask(self.decode, "parts", HANDLE)), self.both, "a part")
        if state is State.WRITTEN:
            self.ask(self.decode, "hear", anything=False)
            self.ask(self.prefill, "finish", HANDLE, 77)
            wait(lambda: bool(self.seen(self.prefill)), self.both, "the last write")
            wait(lambda: self.ask(self.decode, "unheard") == 4, self.both, "all four pairs")

    def await_end(self, worker: Worker | Remote) -> Outcome:
        """The outcome of the hand-off on one side."""
        wait(lambda: bool(self.seen(worker)), self.both, "an outcome")
        return self.seen(worker)[0]

    def await_accounts(self, worker: Worker | Remote) -> None:
        """Every block is free on one side."""
        wait(lambda: self.ask(worker, "audit") == (0, 0, 0), self.both, "free memory")


@pytest.fixture
def start() -> Iterator[Callable[[str], Case]]:
    """Starts both workers, the named one in a process of its own."""
    cases: list[Case] = []

    def begin(elsewhere: str) -> Case:
        case = Case(
            Remote(PREFILL) if elsewhere == "prefill" else Worker(PREFILL),
            Remote(DECODE) if elsewhere == "decode" else Worker(DECODE),
        )
        cases.append(case)
        return case

    yield begin
    for case in cases:
        case.prefill.close()
        case.decode.close()


# What happens. Each leaves time and network where the table's expectations can be awaited.


def _kill_prefill(case: Case) -> None:
    """The router notices first, and cancels on decode; decode asks, and finds nobody."""
    assert isinstance(case.prefill, Remote)
    assert isinstance(case.decode, Worker)
    case.prefill.kill()
    case.decode.cancel_reservation(HANDLE)
    while case.decode.audit() != (0, 0, 0):
        case.decode.step()
        case.decode.pass_time(0.1)
    assert case.decode.now_s < LEASE_S


def _kill_prefill_unseen(case: Case) -> None:
    """Nobody notices: the lease runs out."""
    assert isinstance(case.prefill, Remote)
    case.prefill.kill()
    case.ask(case.decode, "pass_time", LEASE_S)


def _kill_decode(case: Case) -> None:
    assert isinstance(case.decode, Remote)
    case.decode.kill()
    _go_on(case)


def _stop_prefill(case: Case) -> None:
    """It hangs, and comes back when decode has long given it up."""
    assert isinstance(case.prefill, Remote)
    case.prefill.stop()
    case.ask(case.decode, "pass_time", LEASE_S)
    case.await_end(case.decode)
    case.prefill.resume()


def _stop_prefill_for_good(case: Case) -> None:
    """It hangs. Its blocks are kept from others for as long as it could still write."""
    assert isinstance(case.prefill, Remote)
    case.prefill.stop()
    case.ask(case.decode, "pass_time", LEASE_S)
    case.await_end(case.decode)
    case.ask(case.decode, "pass_time", LEASE_S + TIMEOUT_S - 1.0)
    case.decode.step()
    assert case.ask(case.decode, "audit") == (0, 0, 5)
    case.ask(case.decode, "pass_time", 1.0)


def _stop_decode(case: Case) -> None:
    assert isinstance(case.decode, Remote)
    case.decode.stop()
    _go_on(case)
    case.prefill.step()
    case.ask(case.prefill, "pass_time", TIMEOUT_S)


def _cancel_on_decode(case: Case) -> None:
    case.ask(case.decode, "cancel_reservation", HANDLE)
    _go_on(case)


def _cancel_on_prefill(case: Case) -> None:
    case.ask(case.prefill, "abort", HANDLE)


def _corrupt(case: Case) -> None:
    """What is written is not what was hashed; decode sees it in the next part already."""
    case.ask(case.prefill, "corrupt")
    case.ask(case.prefill, "advance", HANDLE, TOKENS)


def _corrupt_last(case: Case) -> None:
    """What decode reads is not what was written. Prefill may be through before it hears."""
    case.ask(case.decode, "corrupt")
    _go_on(case)


def _lease_of_decode(case: Case) -> None:
    case.ask(case.decode, "pass_time", LEASE_S)
    case.decode.step()
    _go_on(case)


def _lease_of_prefill(case: Case) -> None:
    case.ask(case.prefill, "pass_time", LEASE_S)


def _restart_decode(case: Case) -> None:
    """The same worker id, another agent: what the ticket says of it is stale."""
    assert isinstance(case.decode, Remote)
    case.decode.kill()
    case.decode.close()
    case.decode = Remote(DECODE)
    _go_on(case)


def _restart_prefill(case: Case) -> None:
    """Another writer with the same ticket, which the first one has claimed."""
    assert isinstance(case.prefill, Remote)
    case.prefill.kill()
    case.prefill.close()
    case.prefill = Remote(PREFILL)
    case.ask(case.prefill, "open", HANDLE, case.ticket, TOKENS)
    case.await_end(case.prefill)
    case.ask(case.decode, "cancel_reservation", HANDLE)


def _go_on(case: Case) -> None:
    """Prefill goes on as if nothing had happened."""
    if not case.ask(case.prefill, "opened", HANDLE) and not case.seen(case.prefill):
        case.ask(case.prefill, "open", HANDLE, case.ticket, TOKENS)
    case.ask(case.prefill, "finish", HANDLE, 77)


RESERVED, GRANTED, PUSHED, WRITTEN = State
Said = int | type[Sent | Arrival | Released] | None

# What happens, where the hand-off is, which worker is in a process of its own, what prefill says in
# the end and what decode says; None where it is dead, or its router ended the request itself.
TABLE: list[tuple[Callable[[Case], None], State, str, Said, Said]] = [
    (_kill_prefill, GRANTED, "prefill", None, Released),
    (_kill_prefill, PUSHED, "prefill", None, Released),
    (_kill_prefill_unseen, RESERVED, "prefill", None, REASON_LEASE_EXPIRED),
    (_kill_prefill_unseen, PUSHED, "prefill", None, REASON_LEASE_EXPIRED),
    (_kill_prefill_unseen, WRITTEN, "prefill", None, Arrival),
    (_kill_decode, RESERVED, "decode", REASON_TRANSFER_FAILED, None),
    (_kill_decode, GRANTED, "decode", REASON_TRANSFER_FAILED, None),
    (_kill_decode, PUSHED, "decode", REASON_TRANSFER_FAILED, None),
    (_kill_decode, WRITTEN, "decode", Sent, None),
    (_stop_prefill, GRANTED, "prefill", REASON_LEASE_EXPIRED, REASON_LEASE_EXPIRED),
    (_stop_prefill, PUSHED, "prefill", REASON_LEASE_EXPIRED, REASON_LEASE_EXPIRED),
    (_stop_prefill_for_good, PUSHED, "prefill", None, REASON_LEASE_EXPIRED),
    (_stop_decode, RESERVED, "decode", REASON_TRANSFER_FAILED, None),
    (_cancel_on_decode, RESERVED, "", REASON_LEASE_EXPIRED, None),
    (_cancel_on_decode, GRANTED, "", REASON_CANCELLED, Released),
    (_cancel_on_decode, PUSHED, "", REASON_CANCELLED, Released),
    (_cancel_on_decode, WRITTEN, "", Sent, Released),
    (_cancel_on_prefill, GRANTED, "", REASON_CANCELLED, REASON_CANCELLED),
    (_cancel_on_prefill, PUSHED, "", REASON_CANCELLED, REASON_CANCELLED),
    (_corrupt, GRANTED, "", REASON_CHECKSUM_MISMATCH, REASON_CHECKSUM_MISMATCH),
    (_corrupt, PUSHED, "", REASON_CHECKSUM_MISMATCH, REASON_CHECKSUM_MISMATCH),
    (_corrupt_last, PUSHED, "", None, REASON_CHECKSUM_MISMATCH),
    (_lease_of_decode, RESERVED, "", REASON_LEASE_EXPIRED, REASON_LEASE_EXPIRED),
    (_lease_of_decode, GRANTED, "", REASON_LEASE_EXPIRED, REASON_LEASE_EXPIRED),
    (_lease_of_decode, PUSHED, "", REASON_LEASE_EXPIRED, REASON_LEASE_EXPIRED),
    (_lease_of_prefill, GRANTED, "", REASON_LEASE_EXPIRED, REASON_LEASE_EXPIRED),
    (_lease_of_prefill, PUSHED, "", REASON_LEASE_EXPIRED, REASON_LEASE_EXPIRED),
    (_restart_decode, RESERVED, "decode", REASON_TRANSFER_FAILED, None),
    (_restart_decode, PUSHED, "decode", REASON_TRANSFER_FAILED, None),
    (_restart_prefill, PUSHED, "prefill", REASON_LEASE_EXPIRED, Released),
]


@pytest.mark.parametrize(
    ("happens", "state", "elsewhere", "prefill_says", "decode_says"),
    [pytest.param(*row, id=f"{row[0].__name__.strip('_')}-{row[1].name.lower()}") for row in TABLE],
)
def test_both_sides_free_everything_and_learn_why(
    start: Callable[[str], Case],
    happens: Callable[[Case], None],
    state: State,
    elsewhere: str,
    prefill_says: Said,
    decode_says: Said,
) -> None:
    case = start(elsewhere)
    case.reach(state)

    happens(case)
    if isinstance(case.decode, Worker):
        case.decode.hear(anything=True)

    for worker, said in ((case.prefill, prefill_says), (case.decode, decode_says)):
        if said is not None:
            outcome = case.await_end(worker)
            if isinstance(said, type):
                assert isinstance(outcome, said)
            else:
                assert isinstance(outcome, SendFailed | Refusal), outcome
                assert outcome.reason == said, outcome.detail
        if not isinstance(worker, Remote) or _answers(worker):
            case.await_accounts(worker)


def _answers(worker: Remote) -> bool:
    """Whether a process is alive and not stopped."""
    if worker.process.pid is None or not worker.process.is_alive():
        return False
    return psutil.Process(worker.process.pid).status() != psutil.STATUS_STOPPED


def test_a_full_decode_pool_reserves_nothing(start: Callable[[str], Case]) -> None:
    case = start("")
    case.reach(PUSHED)
    assert case.ask(case.decode, "reserve", 6, 100) == REASON_OUT_OF_CAPACITY
    _go_on(case)
    assert isinstance(case.await_end(case.decode), Arrival)
    case.await_end(case.prefill)
    for worker in case.both:
        assert isinstance(worker, Worker)
        case.await_accounts(worker)


def test_quarantined_memory_is_given_to_nobody(start: Callable[[str], Case]) -> None:
    case = start("")
    case.reach(PUSHED)
    case.ask(case.decode, "cancel_reservation", HANDLE)
    free_tokens = 56  # of 12 blocks of 8 tokens, 5 are in quarantine
    assert case.ask(case.decode, "reserve", 6, free_tokens + 1) == REASON_OUT_OF_CAPACITY
    assert isinstance(case.ask(case.decode, "reserve", 7, free_tokens), bytes)
    assert isinstance(case.await_end(case.decode), Released)
    case.ask(case.decode, "cancel_reservation", 7)
    assert isinstance(case.ask(case.decode, "reserve", 6, free_tokens + 1), bytes)
    case.ask(case.decode, "cancel_reservation", 6)
    case.await_accounts(case.prefill)


def test_a_renewed_lease_lasts(start: Callable[[str], Case]) -> None:
    case = start("")
    case.reach(GRANTED)
    for _ in range(3):
        for worker in (case.prefill, case.decode):
            case.ask(worker, "pass_time", LEASE_S - 1.0)
            case.ask(worker, "renew", HANDLE)
            worker.step()
    _go_on(case)
    assert isinstance(case.await_end(case.decode), Arrival)
    assert isinstance(case.await_end(case.prefill), Sent)


def test_a_hand_off_after_a_failed_one_goes_well(start: Callable[[str], Case]) -> None:
    """The agents of both workers still know each other."""
    case = start("")
    case.reach(PUSHED)
    _cancel_on_prefill(case)
    case.await_end(case.decode)
    case.await_accounts(case.prefill)
    ticket = case.ask(case.decode, "reserve", 6, TOKENS)
    case.ask(case.prefill, "open", 6, ticket, TOKENS)
    case.ask(case.prefill, "finish", 6, 78)
    wait(lambda: len(case.seen(case.decode)) == 2, case.both, "the second outcome")
    assert case.seen(case.decode)[1] == Arrival(6, TOKENS, 78)
    case.await_accounts(case.decode)
