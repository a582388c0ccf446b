"""A session's translation between handles and keys, and what waits while the stream is busy."""

from __future__ import annotations

import pytest

from protos.tandem.v1.common_pb2 import (
    REASON_CANCELLED,
    REASON_LENGTH,
    Grammar,
    SamplingParams,
)
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from protos.tandem.v1.inference_pb2 import HandoffReport
from protos.tandem.v1.worker_pb2 import (
    Cancel,
    Prefill,
    Renew,
    Reserve,
    SessionCommand,
    SessionEvents,
    WorkItem,
)
from workers.engine import commands
from workers.engine.events import Credits, Ended, PrefillDone, Reserved, StateArrived, TokenRow
from workers.engine.sampling.logprobs import Chosen
from workers.session import ProtocolError, RouterSession, sampling_from_message
from workers.shares import grant


def _item(handle: int) -> WorkItem:
    return WorkItem(
        handle=handle,
        request_id=f"r{handle}",
        prompt_tokens=3,
        sampling=SamplingParams(max_tokens=5, top_p=1.0, stop_token_ids=[2]),
    )


def _reserve(handle: int) -> SessionCommand:
    return SessionCommand(reserve=Reserve(item=_item(handle)))


def _prefill(handle: int) -> SessionCommand:
    return SessionCommand(prefill=Prefill(item=_item(handle), token_ids=[5, 6, 7]))


def _cancel(handle: int) -> SessionCommand:
    return SessionCommand(cancel=Cancel(handle=handle, reason=REASON_CANCELLED))


@pytest.fixture
async def session() -> RouterSession:
    session = RouterSession(first_key=3, key_step=10, worker_id="decode-1")
    await session.next_message()
    return session


def _key_of(session: RouterSession, message: SessionCommand) -> int:
    command = session.command(message)
    assert isinstance(command, commands.Reserve | commands.Prefill)
    return command.item.key


async def test_the_first_message_is_a_welcome() -> None:
    message = await RouterSession(0, 1, "decode-1").next_message()
    assert message.welcome.worker_id == "decode-1"


async def test_sessions_give_keys_that_name_their_session(session: RouterSession) -> None:
    assert [_key_of(session, _reserve(handle)) % 10 for handle in (7, 8, 9)] == [3, 3, 3]


async def test_a_prefill_without_a_ticket_has_none(session: RouterSession) -> None:
    command = session.command(_prefill(7))
    assert isinstance(command, commands.Prefill)
    assert command.ticket is None
    assert command.token_ids == (5, 6, 7)
    assert command.item.sampling.stop_token_ids == frozenset({2})


def test_all_of_a_requests_sampling_reaches_the_engine() -> None:
    message = SamplingParams(
        max_tokens=5,
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        seed=9,
        stop_token_ids=[2, 4],
        logprobs=True,
        top_logprobs=3,
        grammar=Grammar(regex="a+"),
    )
    assert sampling_from_message(message) == commands.Sampling(
        max_tokens=5,
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        seed=9,
        stop_token_ids=frozenset({2, 4}),
        logprobs=True,
        top_logprobs=3,
        grammar=commands.Grammar("regex", "a+"),
    )
    assert sampling_from_message(SamplingParams(max_tokens=5, top_p=1.0)) == commands.Sampling(5)
    for shape, grammar in (
        (Grammar(json_object=True), commands.Grammar("json_object")),
        (Grammar(json_schema="{}"), commands.Grammar("json_schema", "{}")),
    ):
        assert sampling_from_message(SamplingParams(grammar=shape)).grammar == grammar


async def test_a_handle_in_use_is_refused_and_one_that_ended_may_come_again(
    session: RouterSession,
) -> None:
    key = _key_of(session, _reserve(7))
    with pytest.raises(ProtocolError, match="handle 7 is in use"):
        session.command(_reserve(7))
    session.add(Ended(key, REASON_LENGTH))
    assert session.open_keys == []
    assert _key_of(session, _reserve(7)) != key


async def test_cancel_of_a_handle_that_has_ended_is_nothing_to_do(session: RouterSession) -> None:
    assert session.command(_cancel(7)) is None
    key = _key_of(session, _reserve(7))
    assert session.command(_cancel(7)) == commands.Cancel(key, REASON_CANCELLED)


async def test_a_renewal_reaches_the_engine_while_the_handle_is_open() -> None:
    session = RouterSession(5, 8, "w")
    renewal = SessionCommand(renew=Renew(handle=7))
    assert session.command(renewal) is None
    work = session.command(_prefill(7))
    assert isinstance(work, commands.Prefill)
    assert session.command(renewal) == commands.Renew(work.item.key)


def test_an_empty_command_is_refused(session: RouterSession) -> None:
    with pytest.raises(ProtocolError, match="unexpected session command"):
        session.command(SessionCommand())


async def test_events_of_several_steps_are_merged_into_one_message(session: RouterSession) -> None:
    first, second = _key_of(session, _prefill(7)), _key_of(session, _reserve(8))
    session.add_credits(grant(Credits(4, 100, 200), 1))
    session.count_work()
    session.add_credits(grant(Credits(3, 90, 200), 1))
    session.add(Reserved(second, HandoffTicket(reservation=9)))
    session.add_tokens(TokenRow(first, 0, (Chosen(11),)))
    session.add(StateArrived(second))
    session.add_tokens(
        TokenRow(second, 1, (Chosen(12, -0.5), Chosen(13, -1.0, ((13, -1.0), (4, -2.0)))))
    )
    session.add_tokens(TokenRow(first, 1, (Chosen(14),)))
    session.add(Ended(second, REASON_LENGTH, "done"))
    message = await session.next_message()
    assert (message.credits.request_slots, message.credits.work_seen) == (3, 1)
    assert list(message.tokens.handles) == [7, 8, 7]
    assert list(message.tokens.first_indexes) == [0, 1, 1]
    assert list(message.tokens.counts) == [1, 2, 1]
    assert list(message.tokens.token_ids) == [11, 12, 13, 14]
    assert list(message.tokens.logprobs) == [0.0, -0.5, -1.0, 0.0]
    assert list(message.tokens.top_counts) == [0, 0, 2, 0]
    assert list(message.tokens.top_token_ids) == [13, 4]
    assert list(message.tokens.top_logprobs) == [-1.0, -2.0]
    assert message.reserved[0].ticket.reservation == 9
    assert message.ended[0].detail == "done"


async def test_logprobs_are_left_out_when_nobody_asked(session: RouterSession) -> None:
    key = _key_of(session, _prefill(7))
    session.add_tokens(TokenRow(key, 0, (Chosen(11),)))
    assert list((await session.next_message()).tokens.logprobs) == []


async def test_a_handed_off_prefill_frees_its_handle_and_a_local_one_keeps_it(
    session: RouterSession,
) -> None:
    local, sent = _key_of(session, _prefill(7)), _key_of(session, _prefill(8))
    session.add(PrefillDone(local, 1.5, None))
    session.add(PrefillDone(sent, 2.5, HandoffReport(kv_bytes=64)))
    assert session.open_keys == [local]
    message = await session.next_message()
    assert isinstance(message, SessionEvents)
    assert [done.HasField("handoff") for done in message.prefill_done] == [False, True]
