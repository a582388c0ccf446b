"""Greedy tokens of every legal layout equal transformers' in float32, with and without drafts.

Prompts cross the turns of the KVP ranks, blocks, and prefill chunks; they run together, so that
windows of a step have different lengths on each rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from protos.tandem.v1.common_pb2 import REASON_LENGTH
from tests.integration.engine.engines import run_colocated
from tests.integration.parallel.groups import (
    MAX_TOKENS,
    VOCAB,
    Reference,
    running,
    worker_config,
    write_checkpoint,
)
from tests.reference_models import Shape
from workers.engine.commands import Sampling
from workers.parallel.layout import ParallelLayout

_LENGTHS = (1, 15, 30, 60, 125, 200)  # answers cross turns, blocks and chunks
_SHAPES = {
    # Two Mamba groups and two KV heads: four ranks share groups, and TPA is 1 or 2.
    "even": Shape(pattern="M*EM-E*", vocab_size=VOCAB),
    # Divisible by three, with every bias that a partial sum must not add more than once.
    "three": Shape(
        pattern="ME*-",
        vocab_size=VOCAB,
        num_attention_heads=6,
        num_key_value_heads=3,
        mamba_num_heads=6,
        n_groups=3,
        n_routed_experts=9,
        moe_shared_expert_intermediate_size=42,
        use_bias=True,
        mlp_bias=True,
        moe_latent_size=None,
    ),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One layout and draft length; `tp` is plain tensor parallelism of a prefill worker."""

    kvp: int = 1
    tpa: int = 1
    tpf: int = 1
    ep: int = 1
    draft_tokens: int = 0
    interleave: int = 16
    hop_b: bool = True
    prefill: bool = False

    @property
    def layout(self) -> ParallelLayout:
        return ParallelLayout(self.kvp, self.tpa, self.tpf, self.ep, self.interleave)

    @property
    def shape(self) -> str:
        return "three" if self.layout.size == 3 else "even"

    def __str__(self) -> str:
        name = f"kvp{self.kvp}-tpa{self.tpa}-tpf{self.tpf}-ep{self.ep}-k{self.draft_tokens}"
        name += f"-i{self.interleave}" + ("" if self.hop_b else "-no_hop_b")
        return f"{name}-prefill" if self.prefill else name


def every_case() -> list[Case]:
    """All legal layouts of up to four ranks with 0, 1 and 3 drafts, and prefill TP 1, 2 and 4."""
    cases = []
    for ranks in (1, 2, 3, 4):
        divisors = [n for n in range(1, ranks + 1) if ranks % n == 0]
        for tpa in divisors:
            if tpa > (3 if ranks == 3 else 2):
                continue  # more than KV heads
            for tpf in divisors:
                for k in (0, 1, 3):
                    # Turns of other lengths, and no overlap, in some of them.
                    interleave = (16, 4, 1)[(tpa + tpf + k) % 3]
                    hop_b = (ranks + tpf + k) % 4 != 0
                    ep, kvp = ranks // tpf, ranks // tpa
                    cases.append(Case(kvp, tpa, tpf, ep, k, interleave, hop_b))
    for tp in (1, 2, 4):
        cases.extend(Case(tpa=tp, tpf=tp, draft_tokens=k, prefill=True) for k in (0, 1, 3))
    return cases


# Each kind of cut and of overlap at least once, with what other tests have: KVP 2 x EP 2 with 3
# drafts below, KVP 2 x TPA 2 with 3 drafts in test_handoff_exactness.py.
_DRAWN = [
    Case(kvp=2, tpf=2, draft_tokens=0, interleave=4, hop_b=False),
    Case(tpa=2, tpf=2, draft_tokens=1),
    Case(kvp=4, ep=4, draft_tokens=1),
    Case(kvp=3, ep=3, draft_tokens=3),
    Case(tpa=4, tpf=4, draft_tokens=1, prefill=True),
]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    return {
        name: write_checkpoint(tmp_path_factory.mktemp(name) / "model", shape, _LENGTHS, seed=21)
        for name, shape in _SHAPES.items()
    }


def check(reference: Reference, case: Case, keys: tuple[int, ...]) -> None:
    """Run some of the prompts together on one layout."""
    prompts = [reference.prompts[key] for key in keys]
    config = worker_config(
        reference.folder,
        case.layout,
        case.draft_tokens,
        role="prefill" if case.prefill else "decode",
        hop_b=case.hop_b,
    )
    with running(config) as engine:
        record = run_colocated(engine, prompts, Sampling(max_tokens=MAX_TOKENS))
        engine.audit()
        credits = engine.credits
    assert [record.tokens[row] for row in range(len(keys))] == [
        reference.expected[key] for key in keys
    ]
    assert all(record.reason(row) == REASON_LENGTH for row in range(len(keys)))
    assert credits.free_tokens == credits.total_tokens


@pytest.mark.parametrize("case", _DRAWN, ids=str)
def test_tokens_of_a_drawn_layout_equal_transformers(
    references: dict[str, Reference], case: Case
) -> None:
    check(references[case.shape], case, (0, 2, 4))


@pytest.mark.full
@pytest.mark.parametrize("case", every_case(), ids=str)
def test_tokens_of_every_legal_layout_equal_transformers(
    references: dict[str, Reference], case: Case
) -> None:
    check(references[case.shape], case, tuple(range(len(_LENGTHS))))


def test_preempted_requests_are_read_anew_and_prefixes_are_reused(
    references: dict[str, Reference],
) -> None:
    """Recomputing and cached prefixes go through the same blocks on every rank."""
    reference = references["even"]
    layout = ParallelLayout(kvp=2, ep=2)
    # Room for the longest request with its drafts: three of 60 tokens start, and cannot all grow.
    config = worker_config(
        reference.folder, layout, 3, kv_tokens=224, max_checkpoints=2, step_tokens=48
    )
    keys = (3, 3, 3, 5, 4)
    with running(config) as engine:
        for _ in range(2):
            prompts = [reference.prompts[key] for key in keys]
            record = run_colocated(engine, prompts, Sampling(max_tokens=MAX_TOKENS))
            assert [record.tokens[row] for row in range(len(keys))] == [
                reference.expected[key] for key in keys
            ]
        assert engine.preemptions > 0
        assert any(done.cached_tokens for done in record.prefill_done.values())
        engine.audit()
