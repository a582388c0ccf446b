"""A request that moves between two decode groups which share the model differently makes the tokens
that transformers makes in float32.

Both ends have KVP x TPA and TPF x EP of their own; the request decodes with drafts while its KV
leaves, and the window that is pending is folded in on every rank when it pauses.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

import pytest

from protos.tandem.v1.common_pb2 import REASON_LENGTH
from tests.integration.engine.moving import Move, run_moving
from tests.integration.parallel.groups import (
    VOCAB,
    Reference,
    running,
    worker_config,
    write_checkpoint,
)
from tests.reference_models import Shape
from workers.engine.commands import Sampling
from workers.parallel.layout import ParallelLayout

_LENGTHS = (1, 15, 30, 60, 125, 200)
_MAX_TOKENS = 40  # answers cross turns and blocks while they move
_LAYOUTS = (
    ParallelLayout(),
    ParallelLayout(kvp=2, ep=2),
    ParallelLayout(tpa=2, tpf=2),
    ParallelLayout(kvp=2, tpf=2, interleave=4),
    ParallelLayout(kvp=2, tpa=2, tpf=2, ep=2, interleave=1),
)


@dataclass(frozen=True, slots=True)
class Case:
    """Layouts of both ends, the drafts of both, and what may be made until all has left."""

    source: ParallelLayout
    target: ParallelLayout
    draft_tokens: int
    growth_tokens: int = 16

    def __str__(self) -> str:
        return f"{_name(self.source)}-to-{_name(self.target)}-k{self.draft_tokens}"


def _name(layout: ParallelLayout) -> str:
    sizes = f"kvp{layout.kvp}-tpa{layout.tpa}-tpf{layout.tpf}-ep{layout.ep}"
    return f"{sizes}-i{layout.interleave}"


def every_case() -> list[Case]:
    """Each layout to each other, with 0, 1 and 3 drafts."""
    return [
        Case(source, target, k)
        for source, target, k in product(_LAYOUTS, _LAYOUTS, (0, 1, 3))
        if source.size + target.size <= 6
    ]


_DRAWN = [
    Case(_LAYOUTS[1], _LAYOUTS[2], 3),
    Case(_LAYOUTS[2], _LAYOUTS[3], 1),
    Case(_LAYOUTS[3], _LAYOUTS[0], 0, growth_tokens=4),
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    shape = Shape(pattern="M*EM-E*", vocab_size=VOCAB)
    folder = tmp_path_factory.mktemp("even") / "model"
    return write_checkpoint(folder, shape, _LENGTHS, seed=22, max_tokens=_MAX_TOKENS)


def check(reference: Reference, case: Case, keys: tuple[int, ...], seed: int) -> None:
    """Some prompts decode together; each moves at a moment of its own, and they end elsewhere."""
    rng = random.Random(seed)
    prompts = [reference.prompts[key] for key in keys]
    moves = {
        row: Move(rng.randint(1, _MAX_TOKENS - 12), case.growth_tokens) for row in range(len(keys))
    }
    source_config = worker_config(reference.folder, case.source, case.draft_tokens)
    target_config = worker_config(reference.folder, case.target, case.draft_tokens)
    with running(source_config) as source, running(target_config) as target:
        seen = run_moving(source, target, prompts, [Sampling(_MAX_TOKENS)] * len(keys), moves)
        assert [seen.token_ids(row) for row in range(len(keys))] == [
            reference.expected[key] for key in keys
        ]
        assert not seen.stayed
        for left in seen.left.values():
            assert left.handoff is not None
            assert left.handoff.kv_bytes > 0
            assert left.handoff.mamba_bytes > 0
            assert (left.handoff.mtp_bytes > 0) == (case.draft_tokens > 0)
        assert seen.left, "none moved"
        assert all(ended.reason == REASON_LENGTH for ended in seen.ended.values())
        for engine in (source, target):
            engine.audit()
            assert engine.credits.free_tokens == engine.credits.total_tokens


@pytest.mark.parametrize("case", _DRAWN, ids=str)
def test_tokens_of_requests_that_move_to_a_drawn_layout_equal_transformers(
    reference: Reference, case: Case
) -> None:
    check(reference, case, (1, 2, 4), seed=len(str(case)))


@pytest.mark.full
@pytest.mark.parametrize("case", every_case(), ids=str)
def test_tokens_of_requests_that_move_to_every_layout_equal_transformers(
    reference: Reference, case: Case
) -> None:
    for seed in range(2):
        check(reference, case, tuple(range(len(_LENGTHS))), seed)
