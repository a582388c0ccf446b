"""What the protocol promises, of the native engine and of the simulated one alike."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from protos.tandem.v1.common_pb2 import (
    REASON_CANCELLED,
    REASON_DRAINING,
    REASON_INVALID_ARGUMENT,
    REASON_LENGTH,
    REASON_MIGRATED,
    REASON_OUT_OF_CAPACITY,
    REASON_STOP_TOKEN,
)
from router.core.events import CacheChanged
from router.core.prefix_index import PrefixIndex
from router.core.prefixes import PrefixKeys
from tests.integration.engine.engines import MAX_STEPS, Record, item, load
from tests.integration.engine.moving import Engine, Move, run_moving
from tests.reference_models import Shape, write_reference
from workers.engine.commands import (
    Cancel,
    Command,
    Drain,
    Migrate,
    Prefill,
    Renew,
    Reserve,
    Sampling,
)
from workers.engine.events import Credits, StepEvents
from workers.engine.simulated.engine import SimulatedEngine
from workers.engine.simulated.limits import Limits
from workers.engine.simulated.prefixes import Prefixes
from workers.engine.simulated.times import LinearTimes
from workers.engine.surroundings import Identity, Surroundings

_BLOCK_TOKENS = 16
_PATIENCE_S = 30.0
_PROMPT = [5 + 7 * index % 90 for index in range(40)]
_SAMPLINGS = {
    "greedy": Sampling(24),
    "sampled": Sampling(24, temperature=1.0, seed=7),
}


class _Simulated:
    """Time passes as far as it must with each step."""

    def __init__(self, name: str, mail: dict[str, list[bytes]]) -> None:
        self._now_s = 0.0
        self._arrived = mail.setdefault(name, [])
        self._engine = SimulatedEngine(
            Surroundings(
                Identity(name, "model", 0, name),
                lambda address, notification: mail[address].append(notification),
                lambda: self._now_s,
                random.Random(1),
            ),
            Limits(max_requests=8, kv_tokens=8192, step_tokens=64, vocab_size=90, lease_s=30.0),
            LinearTimes(),
            Prefixes(_BLOCK_TOKENS, 32, 16),
        )

    @property
    def credits(self) -> Credits:
        return self._engine.credits

    def handle(self, command: Command) -> None:
        self._engine.handle(command)

    def step(self) -> StepEvents:
        for notification in self._arrived:
            self._engine.arrived(notification)
        self._arrived.clear()
        # Not to the end of leases, which nobody renews here.
        if (idle_s := self._engine.idle_s) is not None and idle_s < 1.0:
            self._now_s += idle_s
        return self._engine.step()

    def close(self) -> None:
        self._engine.close()


Pair = tuple[Engine, Engine]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_reference(folder, Shape(pattern="M*EM"), seed=11)
    return folder


@pytest.fixture(params=["native", "simulated"])
def pair(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[Pair]:
    """A prefill and a decode engine that hand over to each other."""
    mail: dict[str, list[bytes]] = {}
    with ExitStack() as stack:
        engines: Pair = (_Simulated("p", mail), _Simulated("d", mail))
        if request.param == "native":
            engines = (load(checkpoint, "prefill"), load(checkpoint))
        for engine in engines:
            stack.callback(engine.close)
        yield engines


def _alone(engine: Engine, *commands: Command) -> Record:
    """Commands on one engine, until each request of theirs has ended."""
    record, keys = Record(), set()
    for command in commands:
        engine.handle(command)
        if isinstance(command, (Prefill, Reserve)):
            keys.add(command.item.key)
            record.tokens[command.item.key] = list(
                command.token_ids[len(command.token_ids) - command.item.generated_tokens :]
                if command.item.generated_tokens
                else ()
            )
    for _ in range(MAX_STEPS):
        if keys <= record.ended.keys():
            return record
        record.add(engine.step())
    raise AssertionError("not ended")


def _whole(engine: Engine, sampling: Sampling, key: int = 1000) -> list[int]:
    return _alone(engine, Prefill(item(key, _PROMPT, sampling), tuple(_PROMPT), None)).tokens[key]


def _handed_over(pair: Pair, key: int, sampling: Sampling, made: list[int]) -> Record:
    """One request over both engines, going on from what was made."""
    prefill, decode = pair
    work = replace(item(key, _PROMPT, sampling), generated_tokens=len(made))
    tokens = (*_PROMPT, *made)
    seen = Record()
    seen.tokens[key] = list(made)
    decode.handle(Reserve(work, tokens))
    sent = False
    for _ in range(MAX_STEPS):
        at_decode = decode.step()
        at_prefill = prefill.step()
        assert not (made and at_prefill.tokens), "prefill samples nothing"
        seen.add(at_prefill)
        seen.add(at_decode)
        if seen.reserved and not sent:
            sent = True
            prefill.handle(Prefill(work, tokens, seen.reserved[key].ticket))
        if key in seen.ended:
            return seen
    raise AssertionError("not ended")


@pytest.mark.parametrize("name", _SAMPLINGS)
def test_an_answer_is_the_same_handed_over_and_continued_wherever_it_was_cut(
    pair: Pair, name: str
) -> None:
    sampling = _SAMPLINGS[name]
    whole = _whole(pair[1], sampling)
    assert len(set(whole)) > 1
    assert _handed_over(pair, 0, sampling, []).tokens[0] == whole
    for made in (1, 2, 17, 23):
        work = replace(item(made, _PROMPT, sampling), generated_tokens=made)
        there = _alone(pair[1], Prefill(work, (*_PROMPT, *whole[:made]), None))
        assert there.tokens[made] == whole
        assert there.reason(made) == REASON_LENGTH
        over = _handed_over(pair, 100 + made, sampling, whole[:made])
        assert over.tokens[100 + made] == whole
        assert over.prefill_done[100 + made].handoff is not None


@pytest.mark.parametrize("name", _SAMPLINGS)
def test_an_answer_that_moves_while_it_is_made_is_the_same(pair: Pair, name: str) -> None:
    sampling = _SAMPLINGS[name]
    whole = _whole(pair[1], sampling)
    before = [engine.credits for engine in pair]
    for after_tokens, growth_tokens in ((1, 2), (3, 12), (12, 4)):
        moves = {0: Move(after_tokens, growth_tokens)}
        seen = run_moving(pair[0], pair[1], [_PROMPT], [sampling], moves)
        assert seen.token_ids(0) == whole
        assert seen.ended[0].reason == REASON_LENGTH
        left = seen.left[0]
        assert left.reason == REASON_MIGRATED
        assert left.handoff is not None
        assert left.handoff.kv_bytes > 0
        assert left.speculation is None or left.speculation.steps < len(whole)
        assert 0 < seen.from_target[0] < len(whole)
        assert [engine.credits.request_slots for engine in pair] == [8, 8]
    assert [engine.credits.free_tokens for engine in pair] == [c.free_tokens for c in before]


def test_a_request_that_is_to_stay_after_all_goes_on_where_it_is(pair: Pair) -> None:
    source, target = pair
    whole = _whole(source, Sampling(24))
    source.handle(Prefill(item(5, _PROMPT, Sampling(24)), tuple(_PROMPT), None))
    record = Record()
    while len(record.tokens[5]) < 2:
        record.add(source.step())
    work = replace(item(5, _PROMPT, Sampling(24)), generated_tokens=2)
    target.handle(Reserve(work, (*_PROMPT, *record.tokens[5][:2]), 20))
    there = Record()
    while not there.reserved:
        there.add(target.step())
    source.handle(Migrate(5, there.reserved[5].ticket))
    source.handle(Migrate(5, None))
    stayed = []
    while not record.ended:
        events = source.step()
        stayed += events.stayed
        record.add(events)
    assert record.tokens[5] == whole
    assert record.reason(5) == REASON_LENGTH
    assert [(one.key, one.reason) for one in stayed] == [(5, REASON_CANCELLED)]


def test_what_does_not_decode_cannot_leave(pair: Pair) -> None:
    source, target = pair
    target.handle(Reserve(item(6, _PROMPT, Sampling(24)), tuple(_PROMPT)))
    there = Record()
    while not there.reserved:
        there.add(target.step())
    source.handle(Prefill(item(6, _PROMPT, Sampling(3)), tuple(_PROMPT), None))
    source.handle(Migrate(6, there.reserved[6].ticket))
    source.handle(Migrate(7, there.reserved[6].ticket))  # nobody knows of it any more
    record, stayed = Record(), []
    while not record.ended:
        events = source.step()
        stayed += events.stayed
        record.add(events)
    assert [(one.key, one.reason) for one in stayed] == [(6, REASON_OUT_OF_CAPACITY)]
    assert record.reason(6) == REASON_LENGTH


def test_what_was_taken_is_said_before_the_credits_count_it(pair: Pair) -> None:
    _, decode = pair
    decode.step()
    before = decode.credits
    decode.handle(Prefill(item(3, _PROMPT, Sampling(4)), tuple(_PROMPT), None))
    decode.handle(Prefill(item(4, [], Sampling(4)), (), None))
    events = decode.step()
    assert events.taken == [3, 4]
    assert [ended.reason for ended in events.ended] == [REASON_INVALID_ARGUMENT]
    assert events.credits is not None
    assert events.credits.request_slots == before.request_slots - 1
    assert events.credits.total_slots == before.total_slots == 8
    assert events.load is not None
    assert events.load.running_requests == 1


def test_what_ended_elsewhere_unheard_ends_at_once(pair: Pair) -> None:
    _, decode = pair
    for key, sampling, reason in (
        (1, Sampling(24, stop_token_ids=frozenset({9})), REASON_STOP_TOKEN),
        (2, Sampling(3), REASON_LENGTH),
    ):
        work = replace(item(key, _PROMPT, sampling), generated_tokens=3)
        record = _alone(decode, Prefill(work, (*_PROMPT, 6, 7, 9), None))
        assert record.tokens[key] == [6, 7, 9]
        assert record.reason(key) == reason


def test_draining_finishes_what_runs_waits_for_leases_and_can_be_taken_back(pair: Pair) -> None:
    _, decode = pair
    decode.handle(Prefill(item(1, _PROMPT, Sampling(3)), tuple(_PROMPT), None))
    decode.handle(Reserve(item(2, _PROMPT, Sampling(3)), tuple(_PROMPT)))
    record = Record()
    record.add(decode.step())
    decode.handle(Drain())
    decode.handle(Prefill(item(3, _PROMPT, Sampling(3)), tuple(_PROMPT), None))
    for _ in range(20):
        events = decode.step()
        record.add(events)
        assert not events.drained, "a reservation is still leased"
    assert record.reason(1) == REASON_LENGTH
    assert record.reason(3) == REASON_DRAINING
    assert record.credits is not None
    assert record.credits.draining
    decode.handle(Renew(2))
    decode.handle(Cancel(2, REASON_CANCELLED))
    assert decode.step().drained
    decode.handle(Drain(resume=True))
    events = decode.step()
    assert not events.drained
    assert events.credits is not None
    assert not events.credits.draining
    assert _whole(decode, Sampling(3))


def test_an_idle_engine_that_is_to_drain_says_at_once_that_it_has(pair: Pair) -> None:
    _, decode = pair
    decode.step()
    decode.handle(Drain())
    assert decode.step().drained


def test_all_credits_come_back_whatever_became_of_the_requests(pair: Pair) -> None:
    prefill, decode = pair
    before = [engine.credits for engine in pair]
    sampling = Sampling(12)
    too_large = Prefill(item(9, _PROMPT, Sampling(9000)), tuple(_PROMPT), None)
    assert _alone(decode, too_large).reason(9) == REASON_OUT_OF_CAPACITY
    for stage in range(6):
        key = 20 + stage
        decode.handle(Reserve(item(key, _PROMPT, sampling), tuple(_PROMPT)))
        record = Record()
        while not record.reserved:
            record.add(decode.step())
        assert record.reserved[key].lease_s == 30.0
        if stage:
            ticket = record.reserved[key].ticket
            prefill.handle(Prefill(item(key, _PROMPT, sampling), tuple(_PROMPT), ticket))
        for _ in range(stage):
            prefill.step()
            decode.step()
        for engine in pair:
            engine.handle(Cancel(key, REASON_CANCELLED))
    # Memory that a writer had claimed comes back when the writer has said that it is done.
    patience = time.monotonic() + _PATIENCE_S
    while any(engine.credits.request_slots < 8 for engine in pair) and time.monotonic() < patience:
        prefill.step()
        decode.step()
    after = [engine.credits for engine in pair]
    assert [credits.request_slots for credits in after] == [8, 8]
    # Cached prefixes may be given up for requests, so they are free as well.
    assert [credits.free_tokens for credits in after] == [c.free_tokens for c in before]


def test_the_index_of_a_router_finds_what_the_engine_finds(pair: Pair) -> None:
    _, decode = pair
    index = PrefixIndex(1000)
    engine_said: list[int] = []

    def run(key: int, prompt: list[int]) -> None:
        decode.handle(Prefill(item(key, prompt, Sampling(2)), tuple(prompt), None))
        record = Record()
        while key not in record.ended:
            events = decode.step()
            record.add(events)
            if events.cache is not None:
                changes = events.cache
                states = [(s.name, s.chain, s.tokens) for s in changes.stored_states]
                index.apply(
                    CacheChanged(
                        "d",
                        _BLOCK_TOKENS,
                        stored_blocks=changes.stored_blocks,
                        removed_blocks=changes.removed_blocks,
                        stored_states=states,
                        removed_states=changes.removed_states,
                    )
                )
        engine_said.append(record.prefill_done[key].cached_tokens)

    run(1, _PROMPT)
    for key, prompt in enumerate(
        ([*_PROMPT, 1, 2, 3], _PROMPT, [*_PROMPT[:35], 1, 2], [4, *_PROMPT], _PROMPT[:30]), start=2
    ):
        expected = index.match(PrefixKeys.of(prompt, _BLOCK_TOKENS)).tokens("d")
        run(key, list(prompt))
        assert engine_said[-1] == expected
    assert max(engine_said) == 40
