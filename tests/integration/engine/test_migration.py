"""A request that moves to another engine while it decodes makes the tokens that it would have made.

Both engines are whole workers of one rank; NIXL moves the state between them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos.tandem.v1.common_pb2 import REASON_LENGTH, REASON_MIGRATED
from tests.integration.engine.engines import load
from tests.integration.engine.moving import Move, run_moving
from tests.reference_models import Shape, reference_greedy, write_drafting
from workers.engine.commands import Sampling
from workers.engine.native.engine import NativeEngine

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
    max_examples=12,
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
