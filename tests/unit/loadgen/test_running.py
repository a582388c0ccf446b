"""Loads on virtual time: open loop, closed loop, conversations, stops."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence

import pytest

from loadgen.asking import Asking
from loadgen.figures import Targets
from loadgen.load import Load, LoadRun
from loadgen.prompts.source import PromptSource
from loadgen.results import Run
from loadgen.sessions import Conversation, Lengths, Session, Turn, made_up
from tests.unit.loadgen.scripted import ScriptedClient
from tests.unit.loadgen.virtual_time import run

TARGETS = Targets(500.0, 40.0)
ASKING = Asking(PromptSource(list(range(1000)), 1000))


def single(times_s: Sequence[float], tokens: int = 4) -> list[Session]:
    return [Session(number, at_s, (Turn(10, tokens),)) for number, at_s in enumerate(times_s)]


def send(client: ScriptedClient, load: Load, asking: Asking = ASKING) -> Run:
    async def all_of_it() -> Run:
        now = asyncio.get_running_loop().time
        return await LoadRun(client, load, TARGETS, now=now).run(await client.open(), asking)

    return run(all_of_it())


def test_an_open_loop_sends_at_the_intended_moments_however_slow_answers_are() -> None:
    times = [0.0, 0.5, 0.5, 7.25]
    done = send(ScriptedClient(ttft_s=100.0), Load(single(times)))
    sent = [record.sent_s for record in done.recorder.records]
    assert sent == [pytest.approx(at, abs=1e-6) for at in times]
    assert [record.good for record in done.recorder.records] == [True] * 4
    assert done.recorder.most_open == 4


def test_latencies_are_those_of_the_script() -> None:
    done = send(ScriptedClient(ttft_s=0.1, itl_s=0.01), Load(single([0.0, 1.0], tokens=11)))
    report = done.document()
    assert report["ttft_ms"] == pytest.approx({"p50": 100, "p90": 100, "p99": 100, "mean": 100})
    assert report["itl_ms"] == pytest.approx({"p50": 10, "p90": 10, "p99": 10, "mean": 10})
    assert report["e2e_ms"] == pytest.approx({"p50": 200, "p90": 200, "p99": 200, "mean": 200})
    gaps = report["gap_ms"]
    assert isinstance(gaps, dict)
    assert gaps["p99"] == pytest.approx(10, rel=0.02)
    assert report["goodput_share"] == 1.0


def test_a_queue_behind_a_full_server_counts_in_ttft() -> None:
    client = ScriptedClient(ttft_s=1.0, itl_s=0.0, slots=1)
    done = send(client, Load(single([0.0, 0.1, 0.2], tokens=1)))
    ttft_s = [record.ttft_ms / 1e3 for record in done.recorder.records]
    assert ttft_s == [pytest.approx(1.0), pytest.approx(1.9), pytest.approx(2.8)]


def test_no_more_users_than_asked_are_open_and_each_waits_for_its_answer() -> None:
    sessions = made_up(Conversation(Lengths(5, 5), Lengths(3, 3)), itertools.repeat(0.0), 0)
    client = ScriptedClient(ttft_s=1.0, itl_s=0.5)
    done = send(client, Load(itertools.islice(sessions, 20), users=4))
    assert len(done.recorder.records) == 20
    assert client.most_open == 4
    # Five laps of two seconds each.
    assert done.document()["seconds"] == pytest.approx(10.0, abs=0.01)
    assert all(record.late_ms == pytest.approx(0.0, abs=1.0) for record in done.recorder.records)


def test_users_think_between_conversations_and_stop_after_the_given_seconds() -> None:
    sessions = made_up(Conversation(Lengths(5, 5), Lengths(1, 1)), itertools.repeat(0.0), 0)
    done = send(ScriptedClient(ttft_s=1.0), Load(sessions, users=2, think_s=3.0, seconds=10.0))
    sent = sorted(round(record.sent_s, 3) for record in done.recorder.records)
    assert sent == [0.0, 0.0, 4.0, 4.0, 8.0, 8.0]


def test_users_do_not_wait_for_the_moments_of_a_traces_later_turns() -> None:
    session = Session(0, 0.0, (Turn(5, 1), Turn(5, 1, not_before_s=1e6)))
    done = send(ScriptedClient(ttft_s=1.0), Load([session], users=1, think_s=3.0))
    assert [record.intended_s for record in done.recorder.records] == [
        pytest.approx(0.0, abs=1e-6),
        pytest.approx(4.0),
    ]


def test_answers_are_forgotten_when_no_later_turn_needs_them() -> None:
    done = send(ScriptedClient(), Load([Session(0, 0.0, (Turn(5, 2), Turn(5, 2)))]))
    assert [record.answer_ids for record in done.recorder.records] == [[], []]
    assert [record.tokens for record in done.recorder.records] == [2, 2]


def test_a_load_ends_its_sending_after_the_given_seconds_and_waits_for_answers() -> None:
    done = send(ScriptedClient(ttft_s=30.0), Load(single([0.0, 4.0, 11.0]), seconds=10.0))
    assert [record.good for record in done.recorder.records] == [True, True]


def test_a_second_turn_carries_the_first_prompt_and_its_answer() -> None:
    turns = (Turn(10, 3), Turn(5, 2, wait_s=2.0), Turn(4, 1, not_before_s=50.0))
    client = ScriptedClient(ttft_s=1.0, itl_s=0.0)
    done = send(client, Load([Session(0, 0.0, turns)]))
    first, second, third = (list(ask.token_ids) for ask in client.asks)
    assert (len(first), len(second), len(third)) == (10, 18, 24)
    assert second[:13] == [*first, 7000, 7000, 7000]
    assert third[:20] == [*second, 7001, 7001]
    records = done.recorder.records
    assert records[1].intended_s == pytest.approx(3.0)
    assert records[2].intended_s == pytest.approx(50.0)
    assert [record.turn for record in records] == [0, 1, 2]


def test_a_conversation_ends_with_a_turn_that_failed() -> None:
    client = ScriptedClient(fails=lambda number: "REASON_QUEUE_FULL" if number == 0 else "")
    done = send(client, Load([Session(0, 0.0, (Turn(5, 2), Turn(5, 2)))]))
    assert done.document()["failed"] == {"REASON_QUEUE_FULL": 1}
    assert done.document()["first_errors"] == {"REASON_QUEUE_FULL": "request 0"}


def test_prompts_that_do_not_fit_are_shortened_and_that_is_said() -> None:
    client = ScriptedClient()
    asking = Asking(ASKING.source, most_tokens=12)
    done = send(client, Load(single([0.0], tokens=4)), asking)
    assert len(client.asks[0].token_ids) == 8
    assert any("1 prompts were shortened" in text for text in done.document()["warnings"])  # type: ignore[attr-defined]


def test_a_stop_cuts_off_what_runs_and_reports_what_was() -> None:
    async def stopped() -> Run:
        client = ScriptedClient(ttft_s=2.0)
        loop = asyncio.get_running_loop()
        load = Load(single([0.0, 9.0, 10.0, 60.0]))
        running = LoadRun(client, load, TARGETS, now=loop.time)
        loop.call_later(11.0, running.stop)
        return await running.run(await client.open(), ASKING)

    report = run(stopped()).document()
    assert (report["requests"], report["finished"], report["unfinished"]) == (3, 1, 2)
    assert report["failed"] == {}
    assert report["interrupted"] is True


def test_a_fault_of_the_client_ends_the_run_with_it() -> None:
    def broken(number: int) -> str:
        raise ZeroDivisionError("a fault")

    with pytest.raises(ZeroDivisionError):
        send(ScriptedClient(fails=broken), Load(single([0.0, 5.0])))


def test_the_timeline_has_a_row_a_second_and_the_last_one_has_everything() -> None:
    done = send(ScriptedClient(ttft_s=0.5), Load(single([float(at) for at in range(10)])))
    rows = done.document()["timeline"]
    assert isinstance(rows, list)
    assert [row["at_s"] for row in rows[:-1]] == [
        pytest.approx(place, abs=1e-6) for place in range(len(rows) - 1)
    ]
    assert rows[-1]["finished"] == rows[-1]["sent"] == 10
    assert not math.isnan(rows[-1]["tokens"])
