"""A request that moves to another engine while it decodes makes the tokens that it would have made.

Both engines are whole workers of one rank; NIXL moves the state between them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos.tandem.v1.common_pb2 import REASON_CANCELLED, REASON_LENGTH, REASON_MIGRATED
from tests.integration.engine.engines import MAX_STEPS, Record, item, load, run_colocated
from tests.integration.engine.moving import Move, run_moving
from tests.reference_models import Shape, reference_greedy, write_drafting
from workers.engine.commands import Cancel, Grammar, Migrate, Prefill, Reserve, Sampling
from workers.engine.native.engine import NativeEngine

_SHIPPED = Path("workers/checkpoints/tandem-tiny")
_MAX_TOKENS = 40
_VOCAB = 19  # few tokens, so that random drafts are right now and then
_LENGTHS = (1, 15, 40, 100)


@dataclass(frozen=True, slots=True)
class Reference:
    """A checkpoint with an MTP block, prompts, and transformers' greedy answers."""

    folder: Path
    prompts: list[list[int]]
    expected: list[list[int]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("drafting") / "model"
    model = write_drafting(folder, Shape(pattern="M*EM-", vocab_size=_VOCAB), seed=21)
    rng = random.Random(9)
    prompts = [[rng.randrange(_VOCAB) for _ in range(length)] for length in _LENGTHS]
    expected = [reference_greedy(model, prompt, _MAX_TOKENS) for prompt in prompts]
    return Reference(folder, prompts, expected)


@pytest.fixture(scope="module", params=[0, 1, 3], ids="k{}".format)
def engines(
    reference: Reference, request: pytest.FixtureRequest
) -> Iterator[tuple[NativeEngine, NativeEngine]]:
    """Two engines that draft alike."""
    both = (
        load(reference.folder, draft_tokens=request.param),
        load(reference.folder, draft_tokens=request.param),
    )
    yield both
    for engine in both:
        engine.close()


_MOVES = st.dictionaries(
    st.integers(0, len(_LENGTHS) - 1),
    st.builds(Move, st.integers(1, _MAX_TOKENS - 2), st.sampled_from([4, 8, 32])),
    min_size=1,
)


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(moves=_MOVES)
def test_greedy_tokens_of_moved_requests_equal_transformers(
    reference: Reference,
    engines: tuple[NativeEngine, NativeEngine],
    moves: dict[int, Move],
) -> None:
    source, target = engines
    samplings = [Sampling(_MAX_TOKENS)] * len(_LENGTHS)
    seen = run_moving(source, target, reference.prompts, samplings, moves)
    assert [seen.token_ids(key) for key in range(len(_LENGTHS))] == reference.expected
    assert all(ended.reason == REASON_LENGTH for ended in seen.ended.values())
    for key, left in seen.left.items():
        assert left.reason == REASON_MIGRATED
        assert left.handoff is not None
        assert left.handoff.kv_bytes > 0
        assert left.handoff.mamba_bytes > 0
        assert seen.from_target[key] > 0
    for engine in engines:
        engine.audit()
        assert engine.credits.free_tokens == engine.credits.total_tokens


_PROMPT = [5 + 7 * index % 90 for index in range(40)]
_ASKED = {
    "sampled": Sampling(40, temperature=1.0, seed=7, top_p=0.9, logprobs=True, top_logprobs=2),
    "penalised": Sampling(40, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5),
    "stopped": Sampling(40, temperature=1.0, seed=3, stop_token_ids=frozenset(range(40, 60))),
    "constrained": Sampling(
        40, grammar=Grammar("regex", "(yes|no), [a-z]+ [0-9]+"), stop_token_ids=frozenset({0})
    ),
}


@pytest.fixture(scope="module")
def shipped() -> Iterator[tuple[NativeEngine, NativeEngine]]:
    """Two engines of the model that ships, with drafts."""
    both = load(_SHIPPED, draft_tokens=3), load(_SHIPPED, draft_tokens=3)
    yield both
    for engine in both:
        engine.close()


@pytest.mark.parametrize("name", _ASKED)
def test_all_that_chooses_the_next_token_goes_along(
    shipped: tuple[NativeEngine, NativeEngine], name: str
) -> None:
    source, target = shipped
    sampling = _ASKED[name]
    alone = run_colocated(source, [_PROMPT], sampling)
    whole = alone.tokens[0]
    assert len(whole) > 3
    for after_tokens in (1, len(whole) // 2):
        moves = {0: Move(after_tokens, 2)}
        seen = run_moving(source, target, [_PROMPT], [sampling], moves)
        assert seen.token_ids(0) == whole
        assert seen.from_target[0] > 0
        assert seen.ended[0].reason == alone.reason(0)
        logprobs = [choice.logprob for choice in seen.tokens[0] if choice.logprob is not None]
        assert logprobs == pytest.approx(alone.logprobs[0], abs=1e-4)


def test_a_request_whose_target_lets_go_stays_where_it_is(
    reference: Reference, engines: tuple[NativeEngine, NativeEngine]
) -> None:
    source, target = engines
    sampling = Sampling(_MAX_TOKENS)
    for steps_between in range(4):
        record, there, stayed = Record(), Record(), []
        source.handle(Prefill(item(0, reference.prompts[2], sampling), _tokens(reference, 2), None))
        while len(record.tokens[0]) < 2:
            record.add(source.step())
        work = replace(item(0, reference.prompts[2], sampling), generated_tokens=2)
        known = (*_tokens(reference, 2), *record.tokens[0][:2])
        target.handle(Reserve(work, known, 30))
        while not there.reserved:
            there.add(target.step())
        source.handle(Migrate(0, there.reserved[0].ticket))
        for _ in range(steps_between):
            record.add(source.step())
        target.handle(Cancel(0, REASON_CANCELLED))
        for _ in range(MAX_STEPS):
            events = source.step()
            stayed += events.stayed
            record.add(events)
            target.step()
            if record.ended and target.credits.request_slots == target.credits.total_slots:
                break
        assert record.tokens[0] == reference.expected[2]
        assert len(stayed) <= 1  # none when the answer ended first
        for engine in engines:
            engine.audit()
            assert engine.credits.free_tokens == engine.credits.total_tokens


def test_memory_that_is_short_at_the_source_only_makes_the_pause_come_sooner(
    reference: Reference,
) -> None:
    # Room for two requests as they are, and not for what the one that leaves may still make.
    source = load(reference.folder, kv_tokens=112, max_checkpoints=0)
    target = load(reference.folder)
    samplings = [Sampling(_MAX_TOKENS)] * 2
    prompts = [reference.prompts[2], reference.prompts[1]]
    seen = run_moving(source, target, prompts, samplings, {0: Move(4, 36)})
    assert [seen.token_ids(key) for key in (0, 1)] == [reference.expected[2], reference.expected[1]]
    assert seen.left.keys() == {0}
    for engine in (source, target):
        engine.audit()
        engine.close()


def _tokens(reference: Reference, prompt: int) -> tuple[int, ...]:
    return tuple(reference.prompts[prompt])
