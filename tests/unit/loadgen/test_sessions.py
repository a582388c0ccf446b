"""Conversations from traces and made-up ones."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from loadgen.sessions import Conversation, Lengths, made_up, of_trace
from loadgen.traces.request import TraceRequest


@given(st.lists(st.tuples(st.floats(0.0, 9.0), st.sampled_from(["", "a", "b"])), min_size=1))
def test_every_request_is_one_turn_of_its_session(rows: list[tuple[float, str]]) -> None:
    requests = [TraceRequest(at, 10, 5, session=name) for at, name in sorted(rows)]
    sessions = of_trace(requests)
    assert sum(len(one.turns) for one in sessions) == len(requests)
    alone = sum(not one.session for one in requests)
    assert len(sessions) == alone + len({one.session for one in requests if one.session})
    assert [one.at_s for one in sessions] == sorted(one.at_s for one in sessions)
    assert len({one.number for one in sessions}) == len(sessions)


def test_prompts_that_count_the_conversation_are_told_from_those_that_do_not() -> None:
    whole = of_trace(
        [TraceRequest(0.0, 100, 20, session="a"), TraceRequest(4.0, 150, 10, session="a")]
    )
    assert [turn.new_tokens for turn in whole[0].turns] == [100, 30]
    assert whole[0].turns[1].not_before_s == 4.0
    new_only = of_trace(
        [TraceRequest(0.0, 100, 20, session="a"), TraceRequest(4.0, 15, 10, session="a")]
    )
    assert [turn.new_tokens for turn in new_only[0].turns] == [100, 15]


def test_made_up_conversations_have_the_wanted_turns_and_lengths() -> None:
    wanted = Conversation(Lengths(10, 20), Lengths(5, 5), turns=3, think_s=2.0, class_name="batch")
    sessions = list(itertools.islice(made_up(wanted, itertools.count(1.0), 4), 200))
    turns = [turn for session in sessions for turn in session.turns]
    assert {len(session.turns) for session in sessions} == {3}
    assert {turn.new_tokens for turn in turns} == set(range(10, 21))
    assert {turn.answer_tokens for turn in turns} == {5}
    assert {turn.wait_s for turn in turns} == {0.0, 2.0}
    assert sessions == list(itertools.islice(made_up(wanted, itertools.count(1.0), 4), 200))
