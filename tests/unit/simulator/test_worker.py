"""Simulated workers keep time as the engine of `engine: simulated` does, step for step."""

from __future__ import annotations

import random
from typing import TypeVar

import pytest

from orchestrator.simulator.agenda import Agenda
from orchestrator.simulator.jobs import Job
from orchestrator.simulator.linear_times import LinearStepTimes
from orchestrator.simulator.worker import Surroundings, Worker
from protos.tandem.v1 import common_pb2
from router.core.events import CreditsChanged, Drained, Ended, Event, TokensArrived
from tests.unit.engine.simulated.workers_on_virtual_time import TIMES, VirtualWorkers, item
from tests.unit.simulator.clusters import kind
from workers.engine.commands import Prefill

_Event = TypeVar("_Event")


class Alone:
    """One worker and nobody else."""

    def __init__(self, **fields: object) -> None:
        self.agenda = Agenda()
        self.events: list[tuple[float, Event]] = []
        self.worker = Worker(
            "w",
            "decode",
            kind(LinearStepTimes(TIMES), **fields),
            Surroundings(
                self.agenda,
                lambda event: self.events.append((self.agenda.now_s, event)),
                lambda source, job: None,
                random.Random(0),
            ),
        )

    def prefill(self, handle: int, prompt: int, answer: int) -> None:
        self.worker.prefill(Job(handle, prompt, 0, answer, prompt + answer, 0, False, prompt + 1))

    def run(self, until_s: float = 1e9) -> None:
        while (next_s := self.agenda.next_s) is not None and next_s <= until_s:
            self.agenda.advance()
        self.agenda.now_s = max(self.agenda.now_s, min(until_s, 1e8))

    def of(self, wanted: type[_Event]) -> list[_Event]:
        return [event for _, event in self.events if isinstance(event, wanted)]


def engine_ends(requests: list[tuple[float, int, int]], step_tokens: int) -> dict[int, float]:
    """When the engine itself ends each request; it makes every token of every step."""
    live = VirtualWorkers(max_requests=99, kv_tokens=1_000_000, step_tokens=step_tokens)
    live.step("only")
    for key, (at_s, prompt, answer) in enumerate(requests):
        live.run(at_s)
        live.now_s = 100.0 + at_s
        # Prompts of different tokens, so that no prefix of one is cached for another.
        command = Prefill(item(key, prompt, max_tokens=answer), (key,) * prompt, None)
        live.tell("only", command)
    live.run()
    times = live.seen["only"].token_times_s
    assert all(len(times[key]) == answer for key, (_, _, answer) in enumerate(requests))
    return {key: made[-1] - 100.0 for key, made in times.items()}


@pytest.mark.parametrize("seed", range(6))
def test_requests_end_when_the_simulated_engine_ends_them(seed: int) -> None:
    rng, now_s, requests = random.Random(seed), 0.0, []
    for _ in range(40):
        now_s += rng.expovariate(8.0)
        requests.append((now_s, rng.randint(1, 400), rng.randint(1, 90)))
    alone = Alone(max_requests=98, kv_tokens=1_000_000, step_tokens=256)
    for handle, (at_s, prompt, answer) in enumerate(requests):
        alone.run(at_s)
        alone.prefill(handle, prompt, answer)
    alone.run()
    ours = {event.handle: at_s for at_s, event in alone.events if isinstance(event, Ended)}
    reference = engine_ends(requests, 256)
    assert ours == pytest.approx(reference, rel=1e-9)


def test_an_answer_is_told_at_its_first_token_and_at_its_end() -> None:
    alone = Alone()
    alone.prefill(1, 30, 20)
    alone.run()
    told = [(event.first_indexes, event.counts) for event in alone.of(TokensArrived)]
    assert told == [([0], [1]), ([1], [19])]


def test_a_worker_that_dies_has_told_of_every_token_that_it_made() -> None:
    alone = Alone()
    alone.prefill(1, 30, 100)
    first_s, step_s = TIMES.step_s(30, 0, 0), TIMES.step_s(0, 1, 31)
    alone.run(first_s + 10.5 * step_s)
    alone.worker.die()
    assert sum(sum(event.counts) for event in alone.of(TokensArrived)) == 11
    assert not alone.of(Ended)


def test_a_worker_that_dies_has_not_made_the_tokens_of_the_step_that_ran() -> None:
    alone = Alone()
    alone.prefill(1, 30, 100)
    first_s, step_s = TIMES.step_s(30, 0, 0), TIMES.step_s(0, 1, 31)
    alone.run(first_s + 10.5 * step_s)
    state = Job(2, 30, 1, 50, 80, 0, False, 31)
    alone.worker.reserve(state)
    alone.worker.arrived(2, state)
    alone.worker.die()
    told = {
        handle: first + count
        for event in alone.of(TokensArrived)
        for handle, first, count in zip(
            event.handles, event.first_indexes, event.counts, strict=True
        )
    }
    assert told == {1: 11}


def test_whoever_joins_in_a_step_begins_with_the_next_one_and_may_leave_before() -> None:
    ends = []
    for is_cancelled in (False, True):
        alone = Alone()
        alone.prefill(1, 30, 12)
        first_s, step_s = TIMES.step_s(30, 0, 0), TIMES.step_s(0, 1, 31)
        alone.run(first_s + 5.5 * step_s)
        state = Job(2, 30, 1, 50, 80, 0, False, 31)
        alone.worker.reserve(state)
        alone.worker.arrived(2, state)
        if is_cancelled:
            alone.worker.cancel(2, common_pb2.REASON_CANCELLED)
        alone.run()
        ends.append(
            {event.handle: at_s for at_s, event in alone.events if isinstance(event, Ended)}
        )
    both_s = TIMES.step_s(0, 2, 62)
    assert ends[0][1] == pytest.approx(first_s + 6 * step_s + 5 * both_s, rel=1e-3)
    assert ends[1][1] == pytest.approx(first_s + 11 * step_s, rel=1e-3)


def test_a_cancelled_request_gives_its_time_to_the_others() -> None:
    both, one = Alone(), Alone()
    for bench in (both, one):
        bench.prefill(1, 30, 50)
    both.prefill(2, 30, 1000)
    both.run(0.05)
    both.worker.cancel(2, common_pb2.REASON_CANCELLED)
    both.run()
    one.run()
    ends = [at_s for at_s, event in both.events if isinstance(event, Ended)]
    alone_s = one.events[-1][0]
    assert [event.reason for event in both.of(Ended)] == [
        common_pb2.REASON_CANCELLED,
        common_pb2.REASON_LENGTH,
    ]
    assert alone_s < ends[1] < alone_s + 0.05
    assert not both.worker.jobs
    assert both.worker.decoding == 0


def test_a_drained_worker_ends_what_it_has_refuses_more_and_says_so() -> None:
    alone = Alone()
    alone.prefill(1, 30, 10)
    alone.worker.drain(resume=False)
    alone.prefill(2, 30, 10)
    alone.run()
    reasons = {event.handle: event.reason for event in alone.of(Ended)}
    assert reasons == {1: common_pb2.REASON_LENGTH, 2: common_pb2.REASON_DRAINING}
    assert alone.of(Drained)
    assert alone.of(CreditsChanged)[-1].draining
    alone.worker.drain(resume=True)
    alone.prefill(3, 30, 10)
    alone.run()
    assert alone.of(Ended)[-1].handle == 3


def test_a_worker_never_holds_more_than_it_has_room_for() -> None:
    alone = Alone(max_requests=2, kv_tokens=100)
    alone.prefill(1, 30, 10)
    alone.prefill(2, 60, 10)
    alone.prefill(3, 30, 10)
    refused = [event.handle for event in alone.of(Ended)]
    assert refused == [2]
    alone.prefill(4, 10, 10)
    assert [event.handle for event in alone.of(Ended)] == [2, 4]
