"""Messages of a session become events in the order in which they depend on each other."""

from __future__ import annotations

import pytest

from protos.tandem.v1 import common_pb2, worker_pb2
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from router.core.events import (
    CreditsChanged,
    Ended,
    PrefillDone,
    Reserved,
    StateArrived,
    TokensArrived,
)
from router.core.instructions import SendPrefill, SendReserve
from router.core.tokens import TokenLogprob
from router.requests import GenerationRequest
from router.wire import ProtocolError, command_for, events_of


def test_one_message_of_a_step_is_unpacked_in_order() -> None:
    message = worker_pb2.SessionEvents(
        credits=worker_pb2.Credits(request_slots=1, free_tokens=2, total_tokens=3),
        tokens=worker_pb2.TokenBatch(
            handles=[7, 8], first_indexes=[1, 0], counts=[2, 1], token_ids=[5, 6, 9]
        ),
        reserved=[worker_pb2.Reserved(handle=6, ticket=HandoffTicket(reservation=4))],
        prefill_done=[worker_pb2.PrefillDone(handle=8, prefill_ms=2.5)],
        state_arrived=[worker_pb2.StateArrived(handle=7)],
        ended=[worker_pb2.Ended(handle=7, reason=common_pb2.REASON_LENGTH, detail="d")],
    )
    assert list(events_of("w", message)) == [
        Reserved("w", 6, HandoffTicket(reservation=4)),
        StateArrived("w", 7),
        TokensArrived("w", [7, 8], [1, 0], [2, 1], [5, 6, 9], []),
        PrefillDone("w", 8, 2.5, None),
        Ended("w", 7, common_pb2.REASON_LENGTH, "d"),
        CreditsChanged("w", 1, 2, 3),
    ]


@pytest.mark.parametrize(
    "batch",
    [
        worker_pb2.TokenBatch(handles=[1], first_indexes=[0], counts=[2], token_ids=[5]),
        worker_pb2.TokenBatch(handles=[1, 2], first_indexes=[0], counts=[1], token_ids=[5]),
        worker_pb2.TokenBatch(handles=[1], counts=[1], token_ids=[5]),
        worker_pb2.TokenBatch(
            handles=[1], first_indexes=[0], counts=[2], token_ids=[5, 6], logprobs=[0.5]
        ),
        worker_pb2.TokenBatch(
            handles=[1],
            first_indexes=[0],
            counts=[1],
            token_ids=[5],
            logprobs=[0.5],
            top_counts=[2],
            top_token_ids=[1],
            top_logprobs=[0.5],
        ),
        worker_pb2.TokenBatch(
            handles=[1],
            first_indexes=[0],
            counts=[2],
            token_ids=[5, 6],
            logprobs=[0.5, 0.5],
            top_counts=[1],
            top_token_ids=[1],
            top_logprobs=[0.5],
        ),
    ],
)
def test_columns_that_do_not_fit_are_refused(batch: worker_pb2.TokenBatch) -> None:
    with pytest.raises(ProtocolError):
        list(events_of("w", worker_pb2.SessionEvents(tokens=batch)))


def test_alternatives_go_to_the_tokens_they_belong_to() -> None:
    batch = worker_pb2.TokenBatch(
        handles=[7, 8],
        first_indexes=[1, 0],
        counts=[2, 1],
        token_ids=[5, 6, 9],
        logprobs=[-1.0, -2.0, -3.0],
        top_counts=[1, 0, 2],
        top_token_ids=[4, 9, 3],
        top_logprobs=[-0.5, -3.0, -4.0],
    )
    (event,) = events_of("w", worker_pb2.SessionEvents(tokens=batch))
    assert isinstance(event, TokensArrived)
    assert event.logprobs == [
        TokenLogprob(-1.0, ((4, -0.5),)),
        TokenLogprob(-2.0),
        TokenLogprob(-3.0, ((9, -3.0), (3, -4.0))),
    ]


def test_commands_carry_what_a_worker_must_know() -> None:
    sampling = common_pb2.SamplingParams(max_tokens=4, seed=9)
    request = GenerationRequest("r", [3, 4], sampling)
    reserve = command_for(SendReserve("d", 5, "r"), request, "00-a-b-01").reserve
    assert (reserve.item.handle, reserve.item.request_id, reserve.item.prompt_tokens) == (5, "r", 2)
    assert (reserve.item.sampling, reserve.item.traceparent) == (sampling, "00-a-b-01")
    ticket = HandoffTicket(reservation=1)
    prefill = command_for(SendPrefill("p", 5, "r", ticket), request, "").prefill
    assert list(prefill.token_ids) == [3, 4]
    assert prefill.ticket == ticket
    local = command_for(SendPrefill("d", 5, "r", None), request, "").prefill
    assert not local.HasField("ticket")
