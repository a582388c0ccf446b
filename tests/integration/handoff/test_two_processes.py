"""Hand-offs between two processes over NIXL: right bytes arrive, wrong ones are refused."""

from __future__ import annotations

import logging

import pytest
import torch

from protos.tandem.v1.common_pb2 import ReasonCode
from protos.tandem.v1.handoff_pb2 import Manifest
from tests.integration.handoff.conftest import GEOMETRY, DecodeWorker, PrefillWorker, make_job
from tests.integration.handoff.prefill_process import Job, Outcome, SendAll, SendTampered, Tamper
from workers.handoff.manifest import to_notification
from workers.handoff.receiver import Arrival, Refusal


def _same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    # Random bytes are NaN here and there: compare them as bytes.
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


def _assert_received(
    decode: DecodeWorker, prefill: PrefillWorker, job: Job, blocks: tuple[int, ...], slot: int
) -> None:
    """The request's state here equals the child's, up to the zeroed tail of the last block."""
    ours, theirs = decode.store.tensors, prefill.expected.tensors
    used = GEOMETRY.blocks_for(job.tokens)
    sent = theirs.kv[list(job.blocks[:used])].clone()
    tail = job.tokens % GEOMETRY.block_tokens
    if tail:
        sent[-1, :, :, :, tail:] = 0
    assert _same_bytes(ours.kv[list(blocks[:used])], sent)
    assert _same_bytes(ours.conv[slot], theirs.conv[job.slot])
    assert _same_bytes(ours.ssm[slot], theirs.ssm[job.slot])


@pytest.mark.parametrize("tokens", [1, 4, 6, 33])
def test_the_state_arrives_byte_for_byte(
    decode: DecodeWorker, prefill: PrefillWorker, tokens: int
) -> None:
    ticket, blocks, slot = decode.reserve(5, tokens)
    before = decode.store.tensors.kv.clone()
    job = make_job(5, ticket, range(20, 31), tokens)

    prefill.ask(SendAll((job,)))
    (outcome,) = decode.wait(prefill)

    assert decode.collect(1) == [Arrival(5, tokens, 1005)]
    _assert_received(decode, prefill, job, blocks, slot)
    untouched = [n for n in range(48) if n not in blocks]
    assert _same_bytes(decode.store.tensors.kv[untouched], before[untouched])
    assert outcome == Outcome(
        handle=5,
        reason=0,
        detail="",
        kv_bytes=GEOMETRY.blocks_for(tokens) * GEOMETRY.kv_block_bytes,
        mamba_bytes=GEOMETRY.conv_slot_bytes + GEOMETRY.ssm_slot_bytes,
        descriptors=3,  # contiguous at both ends: one for each kind
        transfer_ms=outcome.transfer_ms,
        handoff_ms=outcome.handoff_ms,
    )
    assert outcome.transfer_ms > 0
    decode.memory.settle(5)
    decode.memory.free(5)


def test_scattered_blocks_arrive_in_order(decode: DecodeWorker, prefill: PrefillWorker) -> None:
    for handle in (1, 2, 3):
        decode.memory.allocate(handle, 8)
    decode.memory.free(2)  # leaves a hole, so that what follows is not contiguous
    ticket, blocks, slot = decode.reserve(9, 20)
    job = make_job(9, ticket, (40, 41, 7, 3, 2), 20)

    prefill.ask(SendAll((job,)))
    (outcome,) = decode.wait(prefill)

    assert decode.collect(1) == [Arrival(9, 20, 1009)]
    _assert_received(decode, prefill, job, blocks, slot)
    assert outcome.descriptors > 3


def test_many_hand_offs_at_once_do_not_mix(decode: DecodeWorker, prefill: PrefillWorker) -> None:
    offers = {handle: decode.reserve(handle, 3 + 2 * handle) for handle in range(10)}
    jobs = tuple(
        make_job(handle, ticket, range(6 * handle, 6 * handle + len(blocks)), 3 + 2 * handle)
        for handle, (ticket, blocks, _) in offers.items()
    )

    prefill.ask(SendAll(jobs))
    outcomes = decode.wait(prefill)

    assert {outcome.handle: outcome.reason for outcome in outcomes} == dict.fromkeys(range(10), 0)
    arrivals = decode.collect(10)
    assert {a.handle: a for a in arrivals} == {
        handle: Arrival(handle, 3 + 2 * handle, 1000 + handle) for handle in range(10)
    }
    for job in jobs:
        _, blocks, slot = offers[job.handle]
        _assert_received(decode, prefill, job, blocks, slot)
        decode.memory.free(job.handle)


def _unchanged(manifest: Manifest) -> bytes:
    return to_notification(manifest)


def _other_model(manifest: Manifest) -> bytes:
    manifest.model_fingerprint = "another-model"
    return to_notification(manifest)


def _other_epoch(manifest: Manifest) -> bytes:
    manifest.epoch += 1
    return to_notification(manifest)


def _one_token_more(manifest: Manifest) -> bytes:
    manifest.tokens += 1
    return to_notification(manifest)


def _other_reservation(manifest: Manifest) -> bytes:
    manifest.reservation ^= 1
    return to_notification(manifest)


def _junk(_: Manifest) -> bytes:
    return b"\xff\x00 no manifest"


def _cut_short(manifest: Manifest) -> bytes:
    return to_notification(manifest)[:-3]


def test_a_changed_byte_is_refused(decode: DecodeWorker, prefill: PrefillWorker) -> None:
    ticket, _, _ = decode.reserve(1, 8)
    prefill.ask(SendTampered(make_job(1, ticket, (1, 2), 8), _unchanged, corrupt_byte=True))
    decode.wait(prefill)

    (refusal,) = decode.collect(1)

    assert isinstance(refusal, Refusal)
    assert refusal.reason == ReasonCode.REASON_CHECKSUM_MISMATCH
    assert "checksum of STATE_KIND_ATTENTION_KV" in refusal.detail


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (_other_model, "model_fingerprint: expected a-model, found another-model"),
        (_other_epoch, "epoch: expected 3, found 4"),
        (_one_token_more, "tokens: expected 8, found 9"),
    ],
)
def test_a_wrong_manifest_is_refused(
    decode: DecodeWorker, prefill: PrefillWorker, tamper: Tamper, words: str
) -> None:
    ticket, _, _ = decode.reserve(1, 8)
    prefill.ask(SendTampered(make_job(1, ticket, (1, 2), 8), tamper))
    decode.wait(prefill)

    (refusal,) = decode.collect(1)

    assert isinstance(refusal, Refusal)
    assert refusal.reason == ReasonCode.REASON_MANIFEST_MISMATCH
    assert words in refusal.detail


@pytest.mark.parametrize("tamper", [_other_reservation, _junk, _cut_short])
def test_a_notification_that_names_no_reservation_harms_nobody(
    decode: DecodeWorker,
    prefill: PrefillWorker,
    tamper: Tamper,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ticket, _, _ = decode.reserve(1, 8)
    job = make_job(1, ticket, (1, 2), 8)
    with caplog.at_level(logging.WARNING, logger="workers.handoff.receiver"):
        prefill.ask(SendTampered(job, tamper))
        decode.wait(prefill)
        prefill.ask(SendAll((job,)))  # the right one comes after all
        decode.wait(prefill)

    assert decode.collect(1) == [Arrival(1, 8, 1001)]
    assert "dropped a" in caplog.text


def test_a_ticket_works_once(
    decode: DecodeWorker, prefill: PrefillWorker, caplog: pytest.LogCaptureFixture
) -> None:
    ticket, _, _ = decode.reserve(1, 8)
    other, blocks, slot = decode.reserve(2, 8)
    job, last = make_job(1, ticket, (1, 2), 8), make_job(2, other, (5, 6), 8)
    with caplog.at_level(logging.WARNING, logger="workers.handoff.receiver"):
        prefill.ask(SendAll((job,)))
        decode.wait(prefill)
        prefill.ask(SendAll((job,)))
        decode.wait(prefill)
        prefill.ask(SendAll((last,)))
        decode.wait(prefill)

    assert decode.collect(2) == [Arrival(1, 8, 1001), Arrival(2, 8, 1002)]
    _assert_received(decode, prefill, last, blocks, slot)
    assert "is unknown, used or over" in caplog.text


def test_a_cancelled_reservation_does_not_arrive(
    decode: DecodeWorker, prefill: PrefillWorker
) -> None:
    ticket, _, _ = decode.reserve(1, 8)
    other, _, _ = decode.reserve(2, 8)
    decode.receiver.cancel(1)
    prefill.ask(SendAll((make_job(1, ticket, (1, 2), 8), make_job(2, other, (3, 4), 8))))
    decode.wait(prefill)

    assert decode.collect(1) == [Arrival(2, 8, 1002)]
    assert decode.receiver.poll(0.0) == []


def test_the_prefill_side_refuses_a_ticket_of_another_model(
    decode: DecodeWorker, prefill: PrefillWorker
) -> None:
    ticket, _, _ = decode.reserve(1, 8)
    ticket.model_fingerprint = "another-model"
    prefill.ask(SendAll((make_job(1, ticket, (1, 2), 8),)))

    (outcome,) = decode.wait(prefill)

    assert outcome.reason == ReasonCode.REASON_MANIFEST_MISMATCH
    assert outcome.detail == "model_fingerprint: expected a-model, found another-model"
    assert decode.outcomes == []


def test_an_address_outside_registered_memory_is_a_failed_transfer(
    decode: DecodeWorker, prefill: PrefillWorker
) -> None:
    ticket, _, _ = decode.reserve(1, 8)
    good, _, _ = decode.reserve(2, 8)
    ticket.ranks[0].regions[0].addresses[0] = 4096
    prefill.ask(SendAll((make_job(1, ticket, (1, 2), 8),)))
    (outcome,) = decode.wait(prefill)
    prefill.ask(SendAll((make_job(2, good, (1, 2), 8),)))  # the pair of workers still works
    decode.wait(prefill)

    assert outcome.reason == ReasonCode.REASON_TRANSFER_FAILED
    assert "decode-test" in outcome.detail
    assert decode.collect(1) == [Arrival(2, 8, 1002)]
