"""Greedy tokens over a hand-off between any two layouts equal transformers' in float32.

Prefill reads with plain tensor parallelism in chunks, decode goes on with KVP x TPA and TPF x EP,
and NIXL moves the state between the ranks, each of which is a process with an agent of its own.
Prompts cross the turns of the KVP ranks, blocks and chunks, and run together.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from protos.tandem.v1.common_pb2 import REASON_LENGTH
from tests.integration.engine.engines import run_disaggregated
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
    "even": Shape(pattern="M*EM-E*", vocab_size=VOCAB),
    "three": Shape(
        pattern="ME*-",
        vocab_size=VOCAB,
        num_attention_heads=6,
        num_key_value_heads=6,
        mamba_num_heads=6,
        n_groups=6,
        n_routed_experts=9,
        moe_shared_expert_intermediate_size=42,
        moe_latent_size=None,
    ),
}


@dataclass(frozen=True, slots=True)
class Case:
    """Ranks that read, and the layout and draft length that write."""

    prefill_tp: int = 1
    kvp: int = 1
    tpa: int = 1
    tpf: int = 1
    ep: int = 1
    draft_tokens: int = 0
    interleave: int = 16

    @property
    def layout(self) -> ParallelLayout:
        return ParallelLayout(self.kvp, self.tpa, self.tpf, self.ep, self.interleave)

    @property
    def shape(self) -> str:
        return "three" if self.layout.size == 3 else "even"

    def __str__(self) -> str:
        there = f"kvp{self.kvp}-tpa{self.tpa}-tpf{self.tpf}-ep{self.ep}-i{self.interleave}"
        return f"tp{self.prefill_tp}-to-{there}-k{self.draft_tokens}"


def every_case() -> list[Case]:
    """Prefill TP 1 and 2 to all legal layouts of up to four ranks, with 0, 1 and 3 drafts."""
    cases = [Case(prefill_tp=4, kvp=4, ep=4, draft_tokens=3)]
    for ranks in (1, 2, 3, 4):
        divisors = [n for n in range(1, ranks + 1) if ranks % n == 0]
        for tpa in divisors:
            if tpa > (3 if ranks == 3 else 2):
                continue  # more than KV heads
            for tpf in divisors:
                for k in (0, 1, 3):
                    for prefill_tp in (1, 2):
                        interleave = (16, 4, 1)[(tpa + tpf + k + prefill_tp) % 3]
                        ep, kvp = ranks // tpf, ranks // tpa
                        cases.append(Case(prefill_tp, kvp, tpa, tpf, ep, k, interleave))
    return cases


# From one rank and from two, to tokens that are cut, heads that are cut, and both.
_DRAWN = [
    Case(prefill_tp=1, kvp=2, ep=2, draft_tokens=3),
    Case(prefill_tp=2, kvp=2, tpf=2, draft_tokens=1, interleave=4),
    Case(prefill_tp=2, tpa=2, tpf=2, draft_tokens=0),
    Case(prefill_tp=2, draft_tokens=3),
    Case(prefill_tp=1, kvp=2, tpa=2, tpf=2, ep=2, draft_tokens=3, interleave=1),
    Case(prefill_tp=2, kvp=3, ep=3, draft_tokens=1),
]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    return {
        name: write_checkpoint(tmp_path_factory.mktemp(name) / "model", shape, _LENGTHS, seed=22)
        for name, shape in _SHAPES.items()
    }


def check(reference: Reference, case: Case, keys: tuple[int, ...]) -> None:
    """Hand some of the prompts over together, twice, so that the second time prefixes are there."""
    prompts = [reference.prompts[key] for key in keys]
    reads = ParallelLayout.tensor_parallel(case.prefill_tp)
    prefill_config = worker_config(reference.folder, reads, case.draft_tokens, role="prefill")
    decode_config = worker_config(reference.folder, case.layout, case.draft_tokens)
    with running(prefill_config) as prefill, running(decode_config) as decode:
        for _ in range(2):
            from_prefill, from_decode, client = run_disaggregated(
                prefill, decode, prompts, Sampling(max_tokens=MAX_TOKENS)
            )
            assert [client.tokens[row] for row in range(len(keys))] == [
                reference.expected[key] for key in keys
            ]
            assert all(from_decode.reason(row) == REASON_LENGTH for row in range(len(keys)))
            for row, done in from_prefill.prefill_done.items():
                assert done.handoff is not None, row
                assert done.handoff.kv_bytes > 0
                assert done.handoff.mamba_bytes > 0
                assert (done.handoff.mtp_bytes > 0) == (case.draft_tokens > 0)
                assert done.handoff.descriptors > 0
                assert 0.0 <= done.handoff.hidden_ms <= done.handoff.transfer_ms
            assert from_prefill.prefill_done.keys() == set(range(len(keys)))
        assert any(done.cached_tokens for done in from_prefill.prefill_done.values())
        for engine in (prefill, decode):
            engine.audit()
            assert engine.credits.free_tokens == engine.credits.total_tokens


@pytest.mark.parametrize("case", _DRAWN, ids=str)
def test_tokens_handed_to_a_drawn_layout_equal_transformers(
    references: dict[str, Reference], case: Case
) -> None:
    check(references[case.shape], case, (1, 2, 4))


@pytest.mark.full
@pytest.mark.parametrize("case", every_case(), ids=str)
def test_tokens_handed_to_every_legal_layout_equal_transformers(
    references: dict[str, Reference], case: Case
) -> None:
    check(references[case.shape], case, tuple(range(len(_LENGTHS))))
