"""The rules of a vLLM worker, without vLLM."""

from __future__ import annotations

import pytest

from protos.tandem.v1.common_pb2 import (
    REASON_CANCELLED,
    REASON_DRAINING,
    REASON_ENGINE_ERROR,
    REASON_INVALID_ARGUMENT,
    REASON_LEASE_EXPIRED,
    REASON_LENGTH,
    REASON_MANIFEST_MISMATCH,
    REASON_OUT_OF_CAPACITY,
    REASON_STOP_TOKEN,
    REASON_TRANSFER_FAILED,
)
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from tests.unit.engine.vllm.scripted_core import LEASE_S, Worker, deliver, item
from workers.engine.commands import Cancel, Migrate, Prefill, Renew, Reserve, WorkItem
from workers.engine.events import StepEvents

_PROMPT = (1, 2, 3, 4)
_SAMPLED = {"temperature": 1.0, "seed": 7}


class _Pair:
    """A prefill and a decode worker, and the letters between them."""

    def __init__(self) -> None:
        self.mail: list[tuple[str, bytes]] = []
        self.prefill = Worker("p", self.mail)
        self.decode = Worker("d", self.mail)

    def begin(self, work: WorkItem, tokens: tuple[int, ...] = _PROMPT) -> HandoffTicket:
        (reserved,) = self.decode.tell(Reserve(work, tokens)).reserved
        self.prefill.tell(Prefill(work, tokens, reserved.ticket))
        return reserved.ticket

    def deliver(self) -> None:
        deliver(self.mail, self.prefill, self.decode)

    def read(self, first: int = 9) -> StepEvents:
        """vLLM has read the prompt, and its state is offered."""
        events = self.prefill.step(first, end="length", transfer='{"at": 1}')
        self.deliver()
        return events


def _tokens(events: StepEvents) -> list[tuple[int, list[int]]]:
    return [(row.first_index, [one.token_id for one in row.chosen]) for row in events.tokens]


def test_the_state_is_kept_by_prefill_offered_pulled_and_let_go_of() -> None:
    pair = _Pair()
    pair.begin(item(1))
    order = pair.prefill.core.added[-1]
    assert (order.token_ids, order.max_tokens, order.keep) == (_PROMPT, 1, True)
    events = pair.read()
    assert _tokens(events) == [(0, [9])]
    assert not events.prefill_done, "decode may still read it"
    pull = pair.decode.core.added[-1]
    assert (pull.token_ids, pull.transfer, pull.max_tokens) == (_PROMPT, '{"at": 1}', 8)
    # Token 0 is made once more by decode, and was sent by prefill.
    events = pair.decode.step(9, pulled=(64, 0.004))
    assert [one.key for one in events.state_arrived] == [1]
    assert _tokens(events) == []
    assert _tokens(pair.decode.step(10, 11)) == [(1, [10, 11])]
    pair.deliver()
    (done,) = pair.prefill.engine.take_events().prefill_done
    assert done.handoff is not None
    assert (done.handoff.kv_bytes, done.handoff.transfer_ms) == (4 * 8, 2.0)
    assert pair.prefill.engine.credits.request_slots == 4
    (ended,) = pair.decode.step(12, end="length").ended
    assert ended.reason == REASON_LENGTH
    assert pair.decode.engine.credits.request_slots == 4


@pytest.mark.parametrize(
    ("sampling", "read", "pulled", "again"),
    [
        ({}, (1, 2, 3, 4, 5, 6), 6, [7]),
        # Random numbers go by the output index: made again from the first token.
        (_SAMPLED, _PROMPT, 8, [5, 6, 7]),
        ({"presence_penalty": 1.0}, _PROMPT, 8, [5, 6, 7]),
    ],
)
def test_an_answer_goes_on_where_another_worker_left_it(
    sampling: dict[str, object], read: tuple[int, ...], pulled: int, again: list[int]
) -> None:
    pair = _Pair()
    pair.begin(item(1, made=3, **sampling), (*_PROMPT, 5, 6, 7))
    assert pair.prefill.core.added[-1].token_ids == read
    assert _tokens(pair.read(first=50)) == [], "prefill samples nothing"
    order = pair.decode.core.added[-1]
    assert (order.token_ids, order.max_tokens) == (read, pulled)
    assert _tokens(pair.decode.step(*again, 8)) == [(3, [8])]


def test_without_a_ticket_the_worker_reads_and_answers_alone() -> None:
    worker = Worker("d", [])
    worker.tell(Prefill(item(1, made=2), (*_PROMPT, 5, 6), None))
    assert worker.core.added[-1].token_ids == (*_PROMPT, 5, 6)
    assert worker.core.added[-1].max_tokens == 6
    events = worker.step(7)
    assert _tokens(events) == [(2, [7])]
    assert events.prefill_done[0].handoff is None
    assert worker.step(2, end="stop").ended[0].reason == REASON_STOP_TOKEN


def test_what_vllm_chooses_otherwise_the_second_time_is_mended_from_what_the_client_has() -> None:
    worker = Worker("d", [])
    worker.tell(Prefill(item(1, made=2, **_SAMPLED), (*_PROMPT, 5, 6), None))
    first = worker.core.added[-1].name
    assert _tokens(worker.step(5, 44, 45)) == []
    assert worker.core.aborted == [first]
    assert worker.core.added[-1].token_ids == (*_PROMPT, 5, 6)
    assert _tokens(worker.step(7)) == [(2, [7])]
    assert _tokens(worker.step(46, name=first)) == [], "the one that was given up"


def test_an_answer_of_one_token_is_prefills_own() -> None:
    pair = _Pair()
    pair.begin(item(1, max_tokens=1))
    assert not pair.prefill.core.added[-1].keep
    events = pair.prefill.step(9, end="length")
    assert (_tokens(events), events.ended[0].reason) == ([(0, [9])], REASON_LENGTH)
    assert not pair.mail


def test_an_answer_that_stops_with_its_first_token_leaves_no_state_behind() -> None:
    pair = _Pair()
    pair.begin(item(1, stop_token_ids=frozenset({9})))
    events = pair.prefill.step(9, end="stop", transfer='{"at": 1}')
    assert events.ended[0].reason == REASON_STOP_TOKEN
    pair.deliver()
    assert pair.decode.core.let_gone == ['{"at": 1}']
    assert not pair.decode.core.added


def test_an_offer_for_a_reservation_that_is_over_frees_the_state_and_ends_the_hand_off() -> None:
    pair = _Pair()
    pair.begin(item(1))
    pair.decode.tell(Cancel(1, REASON_CANCELLED))
    pair.read()
    pair.deliver()
    assert pair.decode.core.let_gone == ['{"at": 1}']
    (ended,) = pair.prefill.engine.take_events().ended
    assert ended.reason == REASON_TRANSFER_FAILED
    assert pair.prefill.engine.credits.request_slots == 4


def test_a_decode_worker_that_never_pulls_costs_a_lease_and_no_more() -> None:
    pair = _Pair()
    pair.begin(item(1))
    pair.prefill.step(9, end="length", transfer='{"at": 1}')
    pair.mail.clear()
    assert pair.prefill.engine.idle_s == LEASE_S
    pair.prefill.now_s += LEASE_S - 1.0
    assert not pair.prefill.tell(Renew(1)).ended
    pair.prefill.now_s += LEASE_S - 1.0
    assert not pair.prefill.engine.take_events().ended
    pair.prefill.now_s += 1.0
    assert pair.prefill.engine.take_events().ended[0].reason == REASON_LEASE_EXPIRED
    pair.decode.now_s += LEASE_S
    assert pair.decode.engine.take_events().ended[0].reason == REASON_LEASE_EXPIRED
    assert pair.decode.engine.idle_s is None


def test_a_cancel_reaches_vllm_wherever_the_request_is() -> None:
    pair = _Pair()
    pair.begin(item(1))
    reading = pair.prefill.core.added[-1].name
    pair.prefill.tell(Cancel(1, REASON_CANCELLED))
    assert pair.prefill.core.aborted == [reading]
    pair.begin(item(2))
    pair.read()
    pulling = pair.decode.core.added[-1].name
    pair.decode.tell(Cancel(2, REASON_CANCELLED))
    assert pair.decode.core.aborted == [pulling]
    assert _tokens(pair.decode.step(9)) == []


@pytest.mark.parametrize("field", ["model_fingerprint", "pull_address"])
def test_a_ticket_of_another_engine_is_refused(field: str) -> None:
    pair = _Pair()
    (reserved,) = pair.decode.tell(Reserve(item(1), _PROMPT)).reserved
    setattr(reserved.ticket, field, "")
    (ended,) = pair.prefill.tell(Prefill(item(1), _PROMPT, reserved.ticket)).ended
    assert ended.reason == REASON_MANIFEST_MISMATCH
    assert not pair.prefill.core.added


def test_credits_count_what_was_promised_and_what_vllm_says_is_in_use() -> None:
    worker = Worker("d", [])
    worker.tell(Prefill(item(1), _PROMPT, None))
    assert worker.engine.credits.free_tokens == 1024 - 16
    assert worker.step(5, kv_share=0.5).credits is not None
    assert worker.engine.credits.free_tokens == 512
    assert worker.engine.credits.request_slots == 3
    worker.step(6, end="length", kv_share=0.5)
    assert worker.engine.credits.free_tokens == 1024, "of nobody's, it is a cache"
    (ended,) = worker.tell(Prefill(item(2, max_tokens=2000), _PROMPT, None)).ended
    assert ended.reason == REASON_OUT_OF_CAPACITY


def test_a_token_that_the_model_has_not_ends_its_request_and_no_other() -> None:
    worker = Worker("d", [])
    (ended,) = worker.tell(Prefill(item(1), (1, 100), None)).ended
    assert (ended.reason, worker.core.added) == (REASON_INVALID_ARGUMENT, [])


def test_what_vllm_does_not_take_ends_with_its_words() -> None:
    pair = _Pair()
    (ended,) = pair.prefill.tell(Prefill(item(1), (1, 99), None)).ended
    assert (ended.reason, ended.detail) == (REASON_INVALID_ARGUMENT, "token 99 is not for me")
    pair.begin(item(2))
    assert pair.prefill.step(end="error").ended[0].reason == REASON_ENGINE_ERROR


def test_a_request_in_the_middle_of_its_answer_stays_where_it_is() -> None:
    pair = _Pair()
    pair.prefill.tell(Prefill(item(1), _PROMPT, None))
    pair.prefill.step(9)
    (reserved,) = pair.decode.tell(Reserve(item(1, made=1), (*_PROMPT, 9))).reserved
    (stayed,) = pair.prefill.tell(Migrate(1, reserved.ticket)).stayed
    # The other one is not to blame, and gets no more requests to take over.
    assert (stayed.key, stayed.reason) == (1, REASON_DRAINING)
    assert not pair.prefill.tell(Migrate(1, None)).stayed, "it has stayed already"
    assert _tokens(pair.prefill.step(10)) == [(1, [10])]
