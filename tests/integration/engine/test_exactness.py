"""Greedy tokens equal transformers' whatever the engine does on the way.

Chunks, batches, arrivals, cached prefixes, preemption and drafts are drawn; the tokens must not
care, and the accounts must balance after every step.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos.tandem.v1.common_pb2 import REASON_LENGTH
from tests.integration.engine.engines import MAX_STEPS, Record, load, run_disaggregated
from tests.reference_models import Shape, reference_greedy, write_drafting
from workers.engine.commands import Prefill, Sampling, WorkItem
from workers.engine.native.engine import NativeEngine

_MAX_TOKENS = 24
_VOCAB = 19  # few tokens, so that random drafts are right now and then


@dataclass(frozen=True, slots=True)
class Reference:
    """A checkpoint with an MTP block, prompts that share prefixes, and transformers' answers."""

    folder: Path
    prompts: list[list[int]]
    expected: list[list[int]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("drafting") / "model"
    model = write_drafting(folder, Shape(pattern="M*EM-", vocab_size=_VOCAB), seed=21)
    rng = random.Random(9)
    base = [rng.randrange(_VOCAB) for _ in range(150)]
    prompts = [base[:length] for length in (1, 16, 33, 64, 100, 150)]
    prompts += [[*base[:80], *(rng.randrange(_VOCAB) for _ in range(extra))] for extra in (1, 40)]
    expected = [reference_greedy(model, prompt, _MAX_TOKENS) for prompt in prompts]
    return Reference(folder, prompts, expected)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: which prompt, its class, and how many steps after the one before it comes."""

    prompt: int
    priority: int
    after_steps: int


_ARRIVALS = st.lists(
    st.builds(Arrival, st.integers(0, 7), st.integers(0, 2), st.integers(0, 12)),
    min_size=1,
    max_size=6,
)


def _run(engine: NativeEngine, reference: Reference, arrivals: list[Arrival]) -> Record:
    record, waiting = Record(), list(enumerate(arrivals))
    due = arrivals[0].after_steps
    for steps in range(MAX_STEPS):
        while waiting and steps >= due:
            key, arrival = waiting.pop(0)
            prompt = tuple(reference.prompts[arrival.prompt])
            sampling = Sampling(max_tokens=_MAX_TOKENS)
            item = WorkItem(key, f"r{key}", sampling, len(prompt), priority=arrival.priority)
            engine.handle(Prefill(item, prompt, None))
            if waiting:
                due = steps + waiting[0][1].after_steps
        record.add(engine.step())
        engine.audit()
        if len(record.ended) == len(arrivals):
            return record
    raise AssertionError("requests did not end")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    arrivals=_ARRIVALS,
    step_tokens=st.integers(1, 200),
    checkpoint_tokens=st.sampled_from([8, 16, 30, 64]),
    max_checkpoints=st.sampled_from([0, 1, 8]),
    # 190 tokens hold one of the longest requests with its drafts, and not two.
    kv_tokens=st.sampled_from([192, 256, 400, 2048]),
    draft_tokens=st.sampled_from([0, 1, 3, 7, "auto"]),
)
def test_tokens_do_not_depend_on_chunks_batches_prefixes_preemption_or_drafts(
    reference: Reference,
    arrivals: list[Arrival],
    step_tokens: int,
    checkpoint_tokens: int,
    max_checkpoints: int,
    kv_tokens: int,
    draft_tokens: int | str,
) -> None:
    engine = load(
        reference.folder,
        kv_tokens=kv_tokens,
        step_tokens=step_tokens,
        checkpoint_tokens=checkpoint_tokens,
        max_checkpoints=max_checkpoints,
        draft_tokens="auto" if isinstance(draft_tokens, str) else draft_tokens,
    )
    try:
        record = _run(engine, reference, arrivals)
    finally:
        engine.close()
    for key, arrival in enumerate(arrivals):
        assert record.reason(key) == REASON_LENGTH, record.ended[key].detail
        assert record.tokens[key] == reference.expected[arrival.prompt]
    credits = engine.credits
    assert credits.free_tokens == credits.total_tokens


@pytest.mark.parametrize("draft_tokens", [1, 3, 7])
def test_speculation_goes_on_after_a_hand_off_with_the_same_tokens(
    reference: Reference, draft_tokens: int
) -> None:
    prefill = load(reference.folder, "prefill", draft_tokens=draft_tokens)
    decode = load(reference.folder, draft_tokens=draft_tokens)
    sampling = Sampling(max_tokens=_MAX_TOKENS)
    try:
        sent, answered, client = run_disaggregated(prefill, decode, reference.prompts, sampling)
    finally:
        prefill.close()
        decode.close()
    assert [client.tokens[key] for key in range(len(reference.prompts))] == reference.expected
    for key in range(len(reference.prompts)):
        report = sent.prefill_done[key].handoff
        assert report is not None
        assert report.mtp_bytes > 0
        speculation = answered.ended[key].speculation
        assert speculation is not None
        assert len(speculation.drafted) == draft_tokens


def test_preempted_requests_are_read_anew_and_none_fails(reference: Reference) -> None:
    engine = load(reference.folder, kv_tokens=256, max_checkpoints=0, draft_tokens=3)
    record = _run(engine, reference, [Arrival(5, 0, 0), Arrival(4, 1, 0), Arrival(7, 1, 2)])
    engine.close()
    assert engine.preemptions > 0
    assert [record.tokens[key] for key in range(3)] == [
        reference.expected[prompt] for prompt in (5, 4, 7)
    ]


def test_a_second_request_reuses_the_prefix_of_the_first_and_says_how_much(
    reference: Reference,
) -> None:
    engine = load(reference.folder, checkpoint_tokens=64, draft_tokens=3)
    record = _run(engine, reference, [Arrival(5, 0, 0), Arrival(7, 0, 100), Arrival(5, 0, 200)])
    engine.close()
    assert [record.prefill_done[key].cached_tokens for key in range(3)] == [0, 64, 128]
    assert record.tokens[2] == reference.expected[5]
