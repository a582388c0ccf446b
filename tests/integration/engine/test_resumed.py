"""A request that lost its worker goes on elsewhere as if nothing had happened: same tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from protos.tandem.v1.common_pb2 import REASON_DRAINING, REASON_LENGTH, REASON_STOP_TOKEN
from tests.integration.engine.engines import MAX_STEPS, Record, item, load, run_colocated
from tests.reference_models import Shape, write_reference
from workers.engine.commands import Cancel, Drain, Grammar, Prefill, Renew, Reserve, Sampling
from workers.engine.events import StepEvents

_PROMPT = [5 + 7 * index % 90 for index in range(40)]
_SAMPLINGS = {
    "greedy": Sampling(24),
    "sampled": Sampling(24, temperature=1.0, seed=7, top_p=0.9),
    "penalised": Sampling(24, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_reference(folder, Shape(pattern="M*EM"), seed=11)
    return folder


@pytest.mark.parametrize("name", _SAMPLINGS)
def test_an_answer_continued_on_another_engine_is_the_same(checkpoint: Path, name: str) -> None:
    sampling = _SAMPLINGS[name]
    first = load(checkpoint)
    whole = run_colocated(first, [_PROMPT], sampling).tokens[0]
    first.close()
    assert len(set(whole)) > 1
    prefill, decode = load(checkpoint, "prefill"), load(checkpoint)
    for made in (1, 2, 17, 23):
        tokens = (*_PROMPT, *whole[:made])
        work = replace(item(made, _PROMPT, sampling), generated_tokens=made)
        locally, remotely = Record(), Record()
        locally.tokens[made] = whole[:made]
        remotely.tokens[made] = whole[:made]
        decode.handle(Prefill(work, tokens, None))
        for _ in range(MAX_STEPS):
            locally.add(decode.step())
            if locally.ended:
                break
        decode.handle(Reserve(work, tokens))
        sent = False
        for _ in range(MAX_STEPS):
            remotely.add(decode.step())
            if remotely.reserved and not sent:
                sent = True
                prefill.handle(Prefill(work, tokens, remotely.reserved[made].ticket))
            events = prefill.step()
            assert not events.tokens, "prefill samples nothing"
            if remotely.ended:
                break
        assert locally.tokens[made] == whole
        assert remotely.tokens[made] == whole
        assert locally.reason(made) == remotely.reason(made) == REASON_LENGTH
    decode.audit()
    prefill.audit()
    decode.close()
    prefill.close()


def test_an_answer_whose_end_was_not_heard_ends_at_once(checkpoint: Path) -> None:
    engine = load(checkpoint)
    sampling = Sampling(24, stop_token_ids=frozenset({9}))
    work = replace(item(1, _PROMPT, sampling), generated_tokens=3)
    engine.handle(Prefill(work, (*_PROMPT, 6, 7, 9), None))
    events = engine.step()
    assert [ended.reason for ended in events.ended] == [REASON_STOP_TOKEN]
    assert not events.tokens
    engine.close()


def test_a_grammar_goes_on_where_it_was() -> None:
    sampling = Sampling(
        12, grammar=Grammar("regex", "(yes|no), [a-z]+ [0-9]+"), stop_token_ids=frozenset({0})
    )
    engine = load(Path("workers/checkpoints/tandem-tiny"))
    whole = run_colocated(engine, [_PROMPT], sampling).tokens[0]
    assert len(whole) > 3
    again = Record()
    again.tokens[1] = whole[:2]
    work = replace(item(1, _PROMPT, sampling), generated_tokens=2)
    engine.handle(Prefill(work, (*_PROMPT, *whole[:2]), None))
    while not again.ended:
        again.add(engine.step())
    assert again.tokens[1] == whole
    engine.close()


def _drained(events: StepEvents) -> bool:
    return events.drained


def test_draining_finishes_what_runs_and_waits_for_leases(checkpoint: Path) -> None:
    engine = load(checkpoint)
    engine.handle(Prefill(item(1, _PROMPT, Sampling(3)), tuple(_PROMPT), None))
    engine.handle(Reserve(item(2, _PROMPT, Sampling(3)), tuple(_PROMPT)))
    engine.step()
    engine.handle(Drain())
    engine.handle(Prefill(item(3, _PROMPT, Sampling(3)), tuple(_PROMPT), None))
    record = Record()
    for _ in range(20):
        events = engine.step()
        record.add(events)
        assert not _drained(events), "a reservation is still leased"
    assert record.reason(1) == REASON_LENGTH
    assert record.reason(3) == REASON_DRAINING
    assert record.credits is not None
    assert record.credits.draining
    engine.handle(Renew(2))
    engine.handle(Cancel(2, REASON_LENGTH))
    assert _drained(engine.step())
    assert not _drained(engine.step()), "it is said once"
    engine.handle(Drain())
    assert _drained(engine.step()), "and again to whoever asks again"
    engine.handle(Drain(resume=True))
    engine.handle(Prefill(item(4, _PROMPT, Sampling(3)), tuple(_PROMPT), None))
    after = Record()
    while not after.ended:
        after.add(engine.step())
    assert after.reason(4) == REASON_LENGTH
    engine.close()


def test_a_handed_off_request_whose_first_token_is_its_last_reports_its_cached_tokens(
    checkpoint: Path,
) -> None:
    prefill, decode = load(checkpoint, "prefill"), load(checkpoint)
    prompt = tuple(5 + index * 3 % 90 for index in range(100))
    cached = []
    for key in (1, 2):
        work = item(key, list(prompt), Sampling(1))
        decode.handle(Reserve(work, prompt))
        (reserved,) = decode.step().reserved
        prefill.handle(Prefill(work, prompt, reserved.ticket))
        record = Record()
        while not record.ended:
            record.add(prefill.step())
        assert record.prefill_done[key].handoff is None
        cached.append(record.prefill_done[key].cached_tokens)
        decode.handle(Cancel(key, REASON_LENGTH))
        decode.step()
    assert cached == [0, 96]
    prefill.close()
    decode.close()


def test_an_engine_says_how_busy_it_is_and_what_it_caches(checkpoint: Path) -> None:
    engine = load(checkpoint)
    prompt = tuple(5 + index * 3 % 90 for index in range(100))
    engine.handle(Prefill(item(1, list(prompt), Sampling(3)), prompt, None))
    loads, changes, taken = [], [], []
    for _ in range(10):
        events = engine.step()
        loads += [events.load] if events.load else []
        changes += [events.cache] if events.cache else []
        taken += events.taken
    assert taken == [1]
    assert loads[0].running_requests == 1
    assert loads[0].waiting_prefill_tokens > 0
    assert loads[-1].running_requests == 0
    assert loads[-1].prefill_tokens_per_s > 0
    assert loads[-1].step_requests == 1
    assert loads[-1].state_bytes_per_token > 0
    states = [state for change in changes for state in change.stored_states]
    assert [state.tokens for state in states] == [32, 64, 96, 100]
    assert len({block for change in changes for block in change.stored_blocks}) == 6
    engine.close()
