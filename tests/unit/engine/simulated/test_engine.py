"""The simulated engine on virtual time: schedule, hand-off, credits, and every end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.tandem.v1 import common_pb2
from tests.unit.engine.simulated.workers_on_virtual_time import VOCAB, VirtualWorkers, item
from workers.engine.commands import Cancel, Grammar, Prefill, Reserve, Sampling
from workers.engine.events import Credits
from workers.engine.simulated.text import expected_answer

PROMPT = (5, 6, 7, 8)


def answer(prompt: tuple[int, ...], tokens: int, **sampling: object) -> list[int]:
    return expected_answer(prompt, Sampling(tokens, **sampling), VOCAB, tokens)  # type: ignore[arg-type]


def test_tokens_come_on_the_schedule_of_the_step_times() -> None:
    workers = VirtualWorkers()
    workers.tell("only", Prefill(item(1, 4, max_tokens=3), PROMPT, None))
    workers.run()
    seen = workers.seen["only"]
    assert seen.tokens[1] == answer(PROMPT, 3)
    # 2 ms for a step, 1 ms for each prompt token, 0.5 ms for each row.
    first, second, third = seen.token_times_s[1]
    assert first == pytest.approx(100.0 + 0.006)
    assert second - first == pytest.approx(0.0025)
    assert third - second == pytest.approx(0.0025)
    assert seen.ended[1].reason == common_pb2.REASON_LENGTH


def test_steps_grow_with_the_batch_and_long_prompts_are_read_in_chunks() -> None:
    workers = VirtualWorkers(step_tokens=16)
    workers.tell("only", Prefill(item(1, 2, max_tokens=30), (1, 2), None))
    workers.run(until_s=0.0041)
    assert len(workers.seen["only"].tokens[1]) == 1
    long = tuple(range(40))
    workers.tell("only", Prefill(item(2, 40, max_tokens=2), long, None))
    workers.run()
    times = workers.seen["only"].token_times_s
    gaps = [round((b - a) * 1e3, 3) for a, b in zip(times[1], times[1][1:], strict=False)]
    # The step under way, then 15 + 15 + 10 tokens of the prompt beside the row, then two rows.
    assert gaps[:5] == [2.5, 17.5, 17.5, 12.5, 3.0]
    assert workers.seen["only"].tokens[2] == answer(long, 2)


def test_a_late_timer_does_not_slow_the_schedule() -> None:
    workers = VirtualWorkers()
    engine = workers.engines["only"]
    workers.tell("only", Prefill(item(1, 4, max_tokens=4), PROMPT, None))
    workers.step("only")
    workers.now_s += 0.006 + 0.001  # a millisecond late
    assert len(workers.step("only").tokens) == 1
    assert engine.idle_s == pytest.approx(0.0015)


def test_a_hand_off_gives_the_same_answer_as_one_worker() -> None:
    workers = VirtualWorkers(("p", "d"))
    workers.tell("d", Reserve(item(7, 4, max_tokens=6), PROMPT))
    reserved = workers.step("d").reserved[0]
    workers.tell("p", Prefill(item(3, 4, max_tokens=6), PROMPT, reserved.ticket))
    workers.run()
    tokens = workers.seen["p"].tokens[3] + workers.seen["d"].tokens[7]
    assert tokens == answer(PROMPT, 6)
    assert workers.seen["d"].ended[7].reason == common_pb2.REASON_LENGTH
    assert 3 not in workers.seen["p"].ended
    (report,) = workers.seen["p"].handoffs
    assert report.kv_bytes == 4 * 2048
    assert any(events.state_arrived for events in workers.seen["d"].events)


@pytest.mark.parametrize("fingerprints", [{"p": "other"}, {}])
def test_state_of_another_model_or_none_at_all_ends_the_reservation(
    fingerprints: dict[str, str],
) -> None:
    lost = not fingerprints
    workers = VirtualWorkers(("p", "d"), drop_notifications=lost, fingerprints=fingerprints)
    workers.tell("d", Reserve(item(7, 4), PROMPT))
    ticket = workers.step("d").reserved[0].ticket
    workers.tell("p", Prefill(item(3, 4), PROMPT, ticket))
    workers.run()
    expected = common_pb2.REASON_LEASE_EXPIRED if lost else common_pb2.REASON_MANIFEST_MISMATCH
    assert workers.seen["d"].ended[7].reason == expected
    assert workers.engines["d"].credits == Credits(4, 1000, 1000, 4)


def test_an_answer_continued_from_its_own_tokens_is_the_undisturbed_one() -> None:
    whole = answer(PROMPT, 12, temperature=1.0, seed=9)
    rest = answer((*PROMPT, *whole[:5]), 7, temperature=1.0, seed=9)
    assert whole == [*whole[:5], *rest]
    assert whole != answer(PROMPT, 12, temperature=1.0, seed=10)
    assert answer(PROMPT, 12) == answer(PROMPT, 12, seed=10)


def test_a_stop_token_ends_the_answer_and_log_probabilities_come_when_asked() -> None:
    workers = VirtualWorkers()
    stop = answer(PROMPT, 3)[2]
    stopping = item(1, 4, stop_token_ids=frozenset({stop}), logprobs=True, top_logprobs=2)
    workers.tell("only", Prefill(stopping, PROMPT, None))
    workers.run()
    assert workers.seen["only"].ended[1].reason == common_pb2.REASON_STOP_TOKEN
    assert workers.seen["only"].tokens[1][-1] == stop
    first = next(events.tokens for events in workers.seen["only"].events if events.tokens)[0]
    assert first.chosen[0].logprob is not None
    assert first.chosen[0].top[0][0] == first.chosen[0].token_id


def test_a_prompt_read_before_is_not_read_again() -> None:
    workers = VirtualWorkers(kv_tokens=4000)
    prompt = tuple(range(100))
    workers.tell("only", Prefill(item(1, 100, max_tokens=1), prompt, None))
    workers.run()
    workers.tell("only", Prefill(item(2, 103, max_tokens=1), (*prompt, 1, 2, 3), None))
    workers.run()
    done = [each for events in workers.seen["only"].events for each in events.prefill_done]
    assert [each.cached_tokens for each in done] == [0, 100]
    assert done[1].prefill_ms == pytest.approx(2.0 + 3 * 1.0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"max_tokens": 999}, common_pb2.REASON_OUT_OF_CAPACITY),
        ({"max_tokens": 0}, common_pb2.REASON_INVALID_ARGUMENT),
        ({"grammar": Grammar("json_object")}, common_pb2.REASON_INVALID_ARGUMENT),
    ],
)
def test_what_it_cannot_serve_it_refuses(fields: dict[str, object], reason: int) -> None:
    workers = VirtualWorkers()
    workers.tell("only", Prefill(item(1, 4, **fields), PROMPT, None))
    workers.run()
    assert workers.seen["only"].ended[1].reason == reason


@given(
    st.lists(
        st.tuples(
            st.integers(1, 30),
            st.integers(1, 12),
            st.floats(0, 0.05),
            st.booleans(),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_whatever_comes_credits_balance_and_answers_are_exact(
    requests: list[tuple[int, int, float, bool, bool]],
) -> None:
    workers = VirtualWorkers(("p", "d"), max_requests=8, kv_tokens=500)
    elapsed_s = 0.0
    for key, (length, max_tokens, gap_s, cancelled, split) in enumerate(requests):
        prompt = tuple((key * 31 + n) % VOCAB for n in range(length))
        wanted = item(key, length, max_tokens=max_tokens)
        if split:
            workers.tell("d", Reserve(wanted, prompt))
            tickets = [each.ticket for each in workers.step("d").reserved if each.key == key]
            assert tickets
            workers.tell("p", Prefill(wanted, prompt, tickets[0]))
        else:
            workers.tell("d", Prefill(wanted, prompt, None))
        elapsed_s += gap_s
        workers.run(until_s=elapsed_s)
        if cancelled:
            for name in ("p", "d"):
                workers.tell(name, Cancel(key, common_pb2.REASON_CANCELLED))
    workers.run()
    for key, (length, max_tokens, _, cancelled, split) in enumerate(requests):
        prompt = tuple((key * 31 + n) % VOCAB for n in range(length))
        tokens = workers.seen["d"].tokens.get(key, [])
        if split:
            tokens = workers.seen["p"].tokens.get(key, []) + tokens
        assert tokens == answer(prompt, max_tokens)[: len(tokens)]
        if not cancelled:
            assert len(tokens) == max_tokens
    for engine in workers.engines.values():
        assert engine.credits == Credits(8, 500, 500, 8)
        assert engine.idle_s is None
