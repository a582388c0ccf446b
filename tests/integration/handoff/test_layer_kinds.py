"""Models that lack a kind of layer hand over what they have; two agents in one process."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest
import torch

from tests.integration.handoff.conftest import GEOMETRY, LIMIT_S
from tests.integration.handoff.prefill_process import MODEL, fill
from workers.handoff.agent import NixlAgent
from workers.handoff.receiver import Arrival, HandoffReceiver, Refusal
from workers.handoff.sender import HandoffSender, SendFailed, Sent
from workers.state.store import StateStore


@pytest.mark.parametrize(("attn_layers", "mamba_layers", "descriptors"), [(2, 0, 1), (0, 3, 2)])
def test_kinds_without_layers_are_left_out(
    attn_layers: int, mamba_layers: int, descriptors: int
) -> None:
    geometry = replace(
        GEOMETRY, attn_layers=attn_layers, mamba_layers=mamba_layers, dtype=torch.float32
    )
    source = StateStore(geometry, blocks=8, slots=2)
    target = StateStore(geometry, blocks=8, slots=2)
    fill(source, 1)
    fill(target, 2)
    sending, receiving = NixlAgent("prefill-test"), NixlAgent("decode-test")
    sending.register(source.memory())
    receiving.register(target.memory())
    sender = HandoffSender(sending, source, MODEL, timeout_s=LIMIT_S)
    receiver = HandoffReceiver(
        receiving, target, MODEL, worker_id="decode-test", lease_s=LIMIT_S, rng=random.Random(1)
    )

    ticket = receiver.reserve(1, range(4, 8), 1, 10, time.monotonic())
    sender.start(1, ticket, range(3), 0, 10, 42, time.monotonic())
    sent: list[Sent | SendFailed] = []
    arrived: list[Arrival | Refusal] = []
    limit_s = time.monotonic() + LIMIT_S
    while not (sent and arrived) and time.monotonic() < limit_s:
        sent += sender.poll(time.monotonic())
        arrived += receiver.poll(time.monotonic())
    received, original = target.tensors, source.tensors
    sender.close()
    receiver.close()
    sending.close()
    receiving.close()

    assert arrived == [Arrival(1, 10, 42)]
    (outcome,) = sent
    assert isinstance(outcome, Sent)
    assert outcome.report.descriptors == descriptors
    assert bytes(received.kv[4:7].numpy()) == bytes(original.kv[:3].numpy())
    assert bytes(received.conv[1].numpy()) == bytes(original.conv[0].numpy())
    assert bytes(received.ssm[1].numpy()) == bytes(original.ssm[0].numpy())
