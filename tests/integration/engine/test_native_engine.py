"""The native engine with real NIXL: exactness over one engine and two, and balanced accounts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from protos.tandem.v1.common_pb2 import (
    REASON_CANCELLED,
    REASON_INVALID_ARGUMENT,
    REASON_LENGTH,
    REASON_MANIFEST_MISMATCH,
    REASON_OUT_OF_CAPACITY,
    REASON_STOP_TOKEN,
)
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from tests.integration.engine.engines import (
    MAX_STEPS,
    Record,
    item,
    load,
    run_colocated,
    run_disaggregated,
)
from tests.reference_models import Shape, load_reference, reference_greedy, write_reference
from workers.engine.commands import Cancel, Prefill, Reserve, Sampling
from workers.engine.native.engine import NativeEngine

_GREEDY = Sampling(max_tokens=12, logprobs=True)
_LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 200)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_reference(folder, Shape(pattern="ME*M-"), seed=11)
    return folder


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(97) for _ in range(length)] for length in _LENGTHS]


@pytest.fixture(scope="module")
def expected(checkpoint: Path, prompts: list[list[int]]) -> list[list[int]]:
    model = load_reference(checkpoint)
    return [reference_greedy(model, prompt, _GREEDY.max_tokens) for prompt in prompts]


@pytest.fixture
def decode(checkpoint: Path) -> Iterator[NativeEngine]:
    engine = load(checkpoint, max_requests=len(_LENGTHS))
    yield engine
    engine.close()


@pytest.fixture
def prefill(checkpoint: Path) -> Iterator[NativeEngine]:
    engine = load(checkpoint, "prefill", max_requests=len(_LENGTHS))
    yield engine
    engine.close()


def _everything_is_free(engine: NativeEngine) -> bool:
    engine.audit()
    events = engine.step()
    credits = events.credits or engine.credits
    return credits.free_tokens == credits.total_tokens


def test_greedy_tokens_of_one_engine_equal_transformers(
    decode: NativeEngine, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    record = run_colocated(decode, prompts, _GREEDY)
    assert [record.tokens[key] for key in range(len(prompts))] == expected
    assert all(record.reason(key) == REASON_LENGTH for key in range(len(prompts)))
    assert _everything_is_free(decode)


def test_greedy_tokens_over_a_hand_off_equal_transformers_and_bytes_are_reported(
    prefill: NativeEngine,
    decode: NativeEngine,
    prompts: list[list[int]],
    expected: list[list[int]],
) -> None:
    from_prefill, from_decode, client = run_disaggregated(prefill, decode, prompts, _GREEDY)
    assert [client.tokens[key] for key in range(len(prompts))] == expected
    assert all(from_decode.reason(key) == REASON_LENGTH for key in range(len(prompts)))
    for key, prompt in enumerate(prompts):
        report = from_prefill.prefill_done[key].handoff
        assert report is not None
        # One attention layer: K and V of 2 heads x 8, float32.
        assert report.kv_bytes == len(prompt) * 2 * 2 * 8 * 4
        assert 0 <= report.hidden_ms <= report.transfer_ms
        assert report.mamba_bytes > 0
        assert report.handoff_ms >= 0
    assert _everything_is_free(prefill)
    assert _everything_is_free(decode)


def test_seeded_sampling_gives_the_same_tokens_on_one_engine_and_on_two(
    prefill: NativeEngine, decode: NativeEngine, prompts: list[list[int]]
) -> None:
    sampling = replace(_GREEDY, temperature=0.8, top_p=0.95, top_k=40, seed=7)
    together = run_colocated(decode, prompts, sampling)
    _, _, client = run_disaggregated(prefill, decode, prompts, sampling)
    greedy = run_colocated(decode, prompts, _GREEDY)
    assert client.tokens == together.tokens
    assert client.tokens != greedy.tokens


def test_logprobs_are_those_of_the_chosen_tokens(
    decode: NativeEngine, checkpoint: Path, prompts: list[list[int]]
) -> None:
    prompt = prompts[3]
    record = run_colocated(decode, [prompt], _GREEDY)
    with torch.no_grad():
        logits = load_reference(checkpoint)(torch.tensor([prompt + record.tokens[0]])).logits[0]
    scores = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    wanted = scores[torch.arange(12), torch.tensor(record.tokens[0])]
    assert record.logprobs[0] == pytest.approx(wanted.tolist(), abs=1e-3)


def test_a_stop_token_ends_a_request_and_is_delivered(
    decode: NativeEngine, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    stop = expected[4][5]
    sampling = replace(_GREEDY, stop_token_ids=frozenset({stop}))
    record = run_colocated(decode, [prompts[4]], sampling)
    assert record.reason(0) == REASON_STOP_TOKEN
    assert record.tokens[0] == expected[4][: expected[4].index(stop) + 1]


def test_a_request_that_ends_with_its_first_token_moves_no_state(
    prefill: NativeEngine, decode: NativeEngine, prompts: list[list[int]]
) -> None:
    sampling = replace(_GREEDY, max_tokens=1)
    from_prefill, _, client = run_disaggregated(prefill, decode, prompts[:2], sampling)
    assert [len(client.tokens[key]) for key in (0, 1)] == [1, 1]
    assert from_prefill.reason(0) == REASON_LENGTH
    assert [done.handoff for done in from_prefill.prefill_done.values()] == [None, None]
    for key in (0, 1):
        decode.handle(Cancel(key, REASON_CANCELLED))
    record = Record()
    record.add(decode.step())
    assert record.reason(0) == record.reason(1) == REASON_CANCELLED
    assert _everything_is_free(decode)


@pytest.mark.parametrize("steps", [0, 1, 2, 4, 8])
def test_cancel_frees_a_local_request_at_every_stage(
    decode: NativeEngine, prompts: list[list[int]], steps: int
) -> None:
    record = Record()
    decode.handle(Prefill(item(0, prompts[-1], _GREEDY), tuple(prompts[-1]), None))
    for _ in range(steps):
        record.add(decode.step())
    decode.handle(Cancel(0, REASON_CANCELLED))
    decode.handle(Cancel(0, REASON_CANCELLED))
    record.add(decode.step())
    assert record.reason(0) == REASON_CANCELLED
    assert _everything_is_free(decode)


@pytest.mark.parametrize("prefill_steps", [0, 1, 4, 5])
def test_cancel_frees_both_sides_of_a_hand_off_at_every_stage(
    prefill: NativeEngine, decode: NativeEngine, prompts: list[list[int]], prefill_steps: int
) -> None:
    prompt, both = prompts[-1], (Record(), Record())
    decode.handle(Reserve(item(0, prompt, _GREEDY), tuple(prompt)))
    both[1].add(decode.step())
    ticket = both[1].reserved[0].ticket
    prefill.handle(Prefill(item(0, prompt, _GREEDY), tuple(prompt), ticket))
    for _ in range(prefill_steps):
        both[0].add(prefill.step())
    for engine in (prefill, decode):
        engine.handle(Cancel(0, REASON_CANCELLED))
    for _ in range(MAX_STEPS):
        for engine, record in zip((prefill, decode), both, strict=True):
            record.add(engine.step())
        if 0 in both[1].ended and (0 in both[0].ended or 0 in both[0].prefill_done):
            break
    assert both[1].reason(0) == REASON_CANCELLED
    assert _everything_is_free(prefill)
    assert _everything_is_free(decode)


def test_more_than_fits_is_refused_and_harms_nobody(
    checkpoint: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    engine = load(checkpoint, kv_tokens=256, max_requests=2)
    long = prompts[-1] * 2
    engine.handle(Prefill(item(100, long, _GREEDY), tuple(long), None))
    record = Record()
    record.add(engine.step())
    assert record.reason(100) == REASON_OUT_OF_CAPACITY
    assert "412 tokens needed" in record.ended[100].detail
    assert run_colocated(engine, prompts[:2], _GREEDY).tokens[1] == expected[1]
    engine.close()


def test_an_empty_prompt_is_refused(decode: NativeEngine) -> None:
    decode.handle(Prefill(item(0, [], _GREEDY), (), None))
    assert decode.step().ended[0].reason == REASON_INVALID_ARGUMENT


def test_state_of_another_model_is_refused_and_both_sides_free_it(
    tmp_path: Path, decode: NativeEngine, prompts: list[list[int]]
) -> None:
    write_reference(tmp_path, Shape(pattern="ME*M-"), seed=12)
    other = load(tmp_path, "prefill")
    from_decode = Record()
    decode.handle(Reserve(item(0, prompts[2], _GREEDY), tuple(prompts[2])))
    from_decode.add(decode.step())
    ticket = from_decode.reserved[0].ticket
    from_prefill = Record()
    other.handle(Prefill(item(0, prompts[2], _GREEDY), tuple(prompts[2]), ticket))
    while 0 not in from_prefill.ended:
        from_prefill.add(other.step())
    assert from_prefill.reason(0) == REASON_MANIFEST_MISMATCH
    assert "fingerprint" in from_prefill.ended[0].detail
    assert _everything_is_free(other)
    other.close()


def test_a_ticket_that_points_nowhere_fails_its_request_only(
    prefill: NativeEngine, prompts: list[list[int]]
) -> None:
    prefill.handle(Prefill(item(0, prompts[2], _GREEDY), tuple(prompts[2]), HandoffTicket()))
    record = Record()
    while 0 not in record.ended:
        record.add(prefill.step())
    assert record.reason(0) == REASON_MANIFEST_MISMATCH
    assert _everything_is_free(prefill)
