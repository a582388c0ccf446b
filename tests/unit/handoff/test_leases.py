"""Who may write, for how long, and when memory is free again: both rank-0 sides, in virtual time.

Commands and control messages are carried by hand; there is no network and no memory.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from protos.tandem.v1.common_pb2 import (
    REASON_CANCELLED,
    REASON_LEASE_EXPIRED,
    REASON_LENGTH,
    REASON_MANIFEST_MISMATCH,
    REASON_TRANSFER_FAILED,
    REASON_UNSPECIFIED,
)
from protos.tandem.v1.handoff_pb2 import HandoffControl, HandoffTicket, RankTarget, StateTensor
from tests.unit.state.shapes import SMALL
from workers.handoff.manifest import ModelVersion, from_notification
from workers.handoff.messages import (
    Abort,
    Command,
    Expect,
    Expecting,
    Finish,
    Forget,
    Open,
    PairArrived,
    Push,
    Pushed,
    Tell,
    WriteEnded,
    WriteFailed,
    Written,
)
from workers.handoff.receiver import Arrival, HandoffReceiver, Refusal, Released
from workers.handoff.sender import HandoffSender, SendFailed, Sent
from workers.state.layout import StateLayout

MODEL = ModelVersion("a-model", 0)
LAYOUT = StateLayout(SMALL)
LEASE_S, TIMEOUT_S, ASK_S = 60.0, 30.0, 1.0
TOKENS, HANDLE = 10, 4
DECODE, PREFILL = "decode.0", "prefill.0"


@dataclass
class Wire:
    """Both sides, and what they said to their ranks and to each other."""

    to_prefill_ranks: list[Command] = field(default_factory=list)
    to_decode_ranks: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        target = RankTarget(
            agent_name=DECODE,
            agent_metadata=b"d",
            memory_type="DRAM",
            tensors=[
                StateTensor(kind=kind, address=1 << 30, part_bytes=LAYOUT.part_bytes(kind), parts=9)
                for kind in LAYOUT.kinds
            ],
        )
        self.sender = HandoffSender(
            self.to_prefill_ranks.append,
            LAYOUT,
            MODEL,
            b"p",
            timeout_s=TIMEOUT_S,
            rng=random.Random(1),
        )
        self.receiver = HandoffReceiver(
            self.to_decode_ranks.append,
            LAYOUT,
            MODEL,
            [target],
            worker_id="decode",
            lease_s=LEASE_S,
            stop_s=TIMEOUT_S,
            ask_every_s=ASK_S,
            rng=random.Random(2),
        )

    def deliver(self, now_s: float) -> None:
        """Carry what was told until nothing is on its way."""
        while True:
            out = [c for c in self.to_prefill_ranks if isinstance(c, Tell)]
            back = [c for c in self.to_decode_ranks if isinstance(c, Tell)]
            self.to_prefill_ranks[:] = [c for c in self.to_prefill_ranks if c not in out]
            self.to_decode_ranks[:] = [c for c in self.to_decode_ranks if c not in back]
            if not out and not back:
                return
            for tell in out:
                message = from_notification(tell.payload)
                assert isinstance(message, HandoffControl)
                self.receiver.heard(message, PREFILL, now_s)
            for tell in back:
                message = from_notification(tell.payload)
                if isinstance(message, HandoffControl):
                    self.sender.heard(message, DECODE)

    def lose(self) -> None:
        """What was told does not arrive."""
        for commands in (self.to_prefill_ranks, self.to_decode_ranks):
            commands[:] = [c for c in commands if not isinstance(c, Tell)]

    def reserve(self, now_s: float = 0.0) -> HandoffTicket:
        return self.receiver.reserve(HANDLE, (3, 1, 2), 0, TOKENS, now_s)

    @property
    def number(self) -> int:
        (expect,) = (c for c in self.to_decode_ranks if isinstance(c, Expect))
        return expect.reservation

    @property
    def transfer(self) -> int:
        (opened,) = (c for c in self.to_prefill_ranks if isinstance(c, Open))
        return opened.transfer

    def grant(self) -> None:
        """Reserved, claimed and granted at second 0."""
        self.sender.open(HANDLE, self.reserve(), (0, 1, 2), 0, TOKENS, 0.0)
        self.receiver.rank_said(Expecting(0, self.number), 0.0)
        self.deliver(0.0)

    def written(self) -> Written:
        return Written(0, self.transfer, 10, 20, 30, 3, 4.0, 1.0)

    def arrived(self, transfer: int | None = None) -> PairArrived:
        layout = LAYOUT.to_proto().SerializeToString()
        return PairArrived(0, self.number, transfer or self.transfer, 0, layout, TOKENS, 77)


@pytest.fixture
def wire() -> Wire:
    return Wire()


def test_nothing_is_opened_before_every_rank_of_decode_expects_it(wire: Wire) -> None:
    wire.sender.open(HANDLE, wire.reserve(), (0, 1, 2), 0, TOKENS, 0.0)
    wire.sender.advance(HANDLE, 8)
    wire.deliver(0.0)
    assert wire.to_prefill_ranks == []
    wire.receiver.rank_said(Expecting(0, wire.number), 0.0)
    wire.deliver(0.0)
    assert [type(command) for command in wire.to_prefill_ranks] == [Open, Push]


def test_parts_leave_at_block_boundaries_and_the_rest_at_the_end(wire: Wire) -> None:
    wire.grant()
    wire.sender.advance(HANDLE, 3)  # less than a block of 4
    wire.sender.advance(HANDLE, 6)
    wire.sender.advance(HANDLE, 6)
    wire.sender.finish(HANDLE, 77, 1.0)
    transfer = wire.transfer
    assert wire.to_prefill_ranks[1:] == [Push(transfer, 0, 4), Finish(transfer, 4, TOKENS, 77)]


def test_a_hand_off_that_goes_well_ends_on_both_sides(wire: Wire) -> None:
    wire.grant()
    wire.sender.finish(HANDLE, 77, 1.0)
    wire.sender.rank_said(wire.written())
    (sent,) = wire.sender.take(1.5)
    assert isinstance(sent, Sent)
    assert (sent.report.handoff_ms, sent.report.hidden_ms) == (500.0, 1.0)
    wire.receiver.rank_said(wire.arrived(), 2.0)
    assert wire.receiver.take(2.0) == [Arrival(HANDLE, TOKENS, 77)]
    assert isinstance(wire.to_decode_ranks[-1], Forget)
    assert not wire.sender.busy
    assert not wire.receiver.busy


def test_a_state_that_grows_leaves_when_all_before_it_is_written(wire: Wire) -> None:
    ticket = wire.receiver.reserve(HANDLE, (3, 1, 2), 0, TOKENS, 0.0, growth_tokens=4)
    assert (ticket.tokens, ticket.growth_tokens) == (TOKENS, 4)
    wire.sender.open(HANDLE, ticket, (0, 1, 2), 0, TOKENS, 0.0)
    wire.sender.advance(HANDLE, 6)
    assert not wire.sender.caught_up(HANDLE), "nothing is granted yet"
    wire.receiver.rank_said(Expecting(0, wire.number), 0.0)
    wire.deliver(0.0)
    assert not wire.sender.caught_up(HANDLE), "a block is on its way"
    wire.sender.rank_said(Pushed(0, wire.transfer, 4))
    assert wire.sender.caught_up(HANDLE)
    wire.sender.advance(HANDLE, 8)
    assert not wire.sender.caught_up(HANDLE), "another one is"
    wire.sender.finish(HANDLE, 77, 1.0, 8, (75, 77))
    finish = Finish(wire.transfer, 8, 8, 77, (75, 77))
    assert wire.to_prefill_ranks[-1] == finish
    layout = LAYOUT.to_proto().SerializeToString()
    arrived = PairArrived(0, wire.number, wire.transfer, 0, layout, 8, 77, (75, 77))
    wire.receiver.rank_said(arrived, 2.0)
    assert wire.receiver.take(2.0) == [Arrival(HANDLE, 8, 77, (75, 77))]


def test_memory_that_nobody_claimed_is_free_at_once_and_later_claims_are_denied(
    wire: Wire,
) -> None:
    ticket = wire.reserve()
    assert not wire.receiver.cancel(HANDLE, REASON_CANCELLED, 1.0)
    wire.sender.open(HANDLE, ticket, (0, 1, 2), 0, TOKENS, 1.0)
    wire.deliver(1.0)
    (failed,) = wire.sender.take(1.0)
    assert isinstance(failed, SendFailed)
    assert failed.reason == REASON_LEASE_EXPIRED
    assert "is unknown, used or over" in failed.detail


def test_a_ticket_is_claimed_once(wire: Wire) -> None:
    wire.grant()
    claim = HandoffControl(reservation=wire.number, transfer=99)
    claim.claim.agent_metadata = b"other"
    wire.receiver.heard(claim, "other.0", 1.0)
    tell = wire.to_decode_ranks[-1]
    assert isinstance(tell, Tell)
    answer = from_notification(tell.payload)
    assert isinstance(answer, HandoffControl)
    assert answer.denial.reason == REASON_LEASE_EXPIRED
    assert (tell.agent_name, tell.agent_metadata) == ("other.0", b"other")


def test_claimed_memory_is_quarantined_until_the_writer_says_that_it_is_done(wire: Wire) -> None:
    wire.grant()
    assert wire.receiver.cancel(HANDLE, REASON_CANCELLED, 1.0)
    wire.deliver(1.0)
    assert wire.receiver.take(1.0) == [], "a rank of the writer has not let go yet"
    assert wire.to_prefill_ranks[-1] == Abort(wire.transfer)
    wire.sender.rank_said(WriteEnded(0, wire.transfer, REASON_UNSPECIFIED, ""))
    (failed,) = wire.sender.take(1.1)
    assert isinstance(failed, SendFailed)
    assert failed.reason == REASON_CANCELLED
    wire.deliver(1.1)
    assert wire.receiver.take(1.1) == [Released(HANDLE)]


def test_a_writer_that_does_not_answer_is_asked_again_and_outlasted(wire: Wire) -> None:
    wire.grant()
    assert wire.receiver.cancel(HANDLE, REASON_CANCELLED, 1.0)
    wire.lose()
    assert wire.receiver.take(1.0 + ASK_S) == []
    assert isinstance(wire.to_decode_ranks[-1], Tell)
    wire.lose()
    assert wire.receiver.take(0.9 + LEASE_S + TIMEOUT_S) == []
    assert wire.receiver.take(1.0 + LEASE_S + TIMEOUT_S) == [Released(HANDLE)]


def test_a_writer_that_is_gone_is_not_waited_for(wire: Wire) -> None:
    wire.grant()
    assert wire.receiver.cancel(HANDLE, REASON_CANCELLED, 1.0)
    wire.receiver.unreachable(PREFILL)
    assert wire.receiver.take(1.0) == [Released(HANDLE)]


def test_a_writer_that_has_finished_long_ago_still_answers(wire: Wire) -> None:
    wire.grant()
    wire.sender.finish(HANDLE, 77, 1.0)
    wire.sender.rank_said(wire.written())
    wire.sender.take(1.0)
    assert wire.receiver.cancel(HANDLE, REASON_CANCELLED, 2.0)
    wire.deliver(2.0)
    assert wire.receiver.take(2.0) == [Released(HANDLE)]


def test_the_lease_begins_with_the_claim_and_with_each_renewal(wire: Wire) -> None:
    ticket = wire.reserve()
    wire.receiver.rank_said(Expecting(0, wire.number), 0.0)
    wire.sender.open(HANDLE, ticket, (0, 1, 2), 0, TOKENS, 50.0)
    wire.deliver(50.0)
    wire.receiver.renew(HANDLE, 100.0)
    wire.sender.renew(HANDLE, 105.0)
    assert wire.receiver.take(159.9) == []
    (refusal,) = wire.receiver.take(160.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.quarantined) == (REASON_LEASE_EXPIRED, True)
    assert wire.sender.take(164.9) == []
    assert wire.to_prefill_ranks[-1] != Abort(wire.transfer)
    wire.sender.take(165.0)
    assert wire.to_prefill_ranks[-1] == Abort(wire.transfer)


def test_a_step_longer_than_a_lease_ends_no_lease_that_could_not_be_renewed(wire: Wire) -> None:
    wire.reserve()
    # The router hears of it after a step of 100 s, and renews in time from then on.
    wire.receiver.spare(100.0)
    assert wire.receiver.take(100.0) == []
    wire.receiver.renew(HANDLE, 119.0)
    assert wire.receiver.take(119.0 + LEASE_S - 0.1) == []
    (refusal,) = wire.receiver.take(119.0 + LEASE_S)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == REASON_LEASE_EXPIRED


def test_a_failure_of_one_rank_is_told_to_decode_when_all_have_let_go(wire: Wire) -> None:
    wire.grant()
    wire.sender.rank_said(WriteFailed(0, wire.transfer, REASON_TRANSFER_FAILED, "no route"))
    assert wire.sender.take(1.0) == []
    wire.sender.rank_said(WriteEnded(0, wire.transfer, REASON_UNSPECIFIED, ""))
    wire.sender.take(1.0)
    wire.deliver(1.0)
    assert wire.receiver.take(1.0) == [Refusal(HANDLE, REASON_TRANSFER_FAILED, "no route")]


def test_an_answer_that_ends_with_its_first_token_leaves_decode_to_the_router(wire: Wire) -> None:
    wire.grant()
    wire.sender.abort(HANDLE, REASON_LENGTH, "")
    wire.sender.rank_said(WriteEnded(0, wire.transfer, REASON_UNSPECIFIED, ""))
    wire.sender.take(1.0)
    wire.deliver(1.0)
    assert wire.receiver.take(1.0) == []
    assert wire.receiver.cancel(HANDLE, REASON_LENGTH, 2.0)
    wire.deliver(2.0)
    assert wire.receiver.take(2.0) == [Released(HANDLE)]


@pytest.mark.parametrize(("finished", "words"), [(False, "asking"), (True, "writing to")])
def test_a_peer_that_hangs_is_given_up(wire: Wire, finished: bool, words: str) -> None:
    if finished:
        wire.grant()
        wire.sender.finish(HANDLE, 77, 0.0)
    else:
        wire.sender.open(HANDLE, wire.reserve(), (0, 1, 2), 0, TOKENS, 0.0)
        wire.lose()
    assert wire.sender.take(TIMEOUT_S - 0.1) == []
    if finished:
        wire.sender.take(TIMEOUT_S)
        wire.sender.rank_said(WriteEnded(0, wire.transfer, REASON_UNSPECIFIED, ""))
    (failed,) = wire.sender.take(TIMEOUT_S)
    assert isinstance(failed, SendFailed)
    assert failed.reason == REASON_TRANSFER_FAILED
    assert f"{words} {DECODE}: not done after {TIMEOUT_S} s" in failed.detail


def test_state_of_a_writer_that_has_not_claimed_is_refused(wire: Wire) -> None:
    wire.grant()
    wire.receiver.rank_said(wire.arrived(transfer=5), 1.0)
    (refusal,) = wire.receiver.take(1.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.quarantined) == (REASON_MANIFEST_MISMATCH, True)
