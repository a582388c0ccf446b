"""The cable between prefill and decode is pulled in the middle of a transfer over TCP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from protos.tandem.v1.common_pb2 import REASON_LEASE_EXPIRED, REASON_TRANSFER_FAILED
from tests.integration.handoff.namespaces import Cable, cable, why_not
from tests.integration.handoff.workers import LEASE_S, TIMEOUT_S, Remote, Setup, wait
from tests.unit.state.shapes import SMALL
from workers.handoff.receiver import Arrival, Refusal
from workers.handoff.sender import SendFailed, Sent
from workers.state.layout import SSM, StateLayout

_WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(_WHY_NOT is not None, reason=_WHY_NOT or "")

# 128 MiB of SSM state, and a link that is slow: the transfer lasts long enough to be cut.
BIG = StateLayout(
    replace(SMALL, ssm_heads=8, ssm_head_dim=128, ssm_state_size=1024, mamba_layers=32)
)
TOKENS = 40


@pytest.fixture
def link() -> Iterator[Cable]:
    with cable() as joined:
        yield joined


@pytest.fixture
def workers(link: Cable) -> Iterator[tuple[Remote, Remote]]:
    prefill = Remote(Setup("prefill", BIG, blocks=12, namespace=link.left))
    decode = Remote(Setup("decode", BIG, blocks=12, namespace=link.right))
    yield prefill, decode
    prefill.close()
    decode.close()


def test_both_sides_give_up_and_free_everything(
    link: Cable, workers: tuple[Remote, Remote]
) -> None:
    prefill, decode = workers
    ticket = decode.ask("reserve", 1, TOKENS)
    prefill.ask("open", 1, ticket, TOKENS)
    prefill.ask("finish", 1, 7)
    wait(lambda: bool(decode.seen()) and bool(prefill.seen()), [], "a hand-off over TCP")
    assert decode.seen() == [Arrival(1, TOKENS, 7)]
    assert isinstance(prefill.seen()[0], Sent)
    whole_bytes = link.received_bytes()
    assert whole_bytes > BIG.part_bytes(SSM), "it went over the cable"

    link.slow_down()
    ticket = decode.ask("reserve", 2, TOKENS)
    prefill.ask("open", 2, ticket, TOKENS)
    wait(lambda: bool(prefill.ask("granted", 2)), [], "leave to write")
    prefill.send("finish", 2, 7)
    wait(lambda: link.received_bytes() > whole_bytes + 1_000_000, [], "the first bytes")
    link.pull()
    prefill.answer()

    assert link.received_bytes() < 2 * whole_bytes, "it was cut before the end"
    assert len(prefill.seen()) == len(decode.seen()) == 1
    prefill.ask("pass_time", TIMEOUT_S)
    wait(lambda: len(prefill.seen()) == 2, [], "prefill gives up")
    failed = prefill.seen()[1]
    assert isinstance(failed, SendFailed)
    assert failed.reason == REASON_TRANSFER_FAILED
    assert prefill.ask("audit") == (0, 0, 0)

    decode.ask("pass_time", LEASE_S)
    wait(lambda: len(decode.seen()) == 2, [], "decode gives up")
    refused = decode.seen()[1]
    assert isinstance(refused, Refusal)
    assert refused.reason == REASON_LEASE_EXPIRED
    assert refused.quarantined, "bytes may still be on their way"
    decode.ask("pass_time", LEASE_S + TIMEOUT_S)
    wait(lambda: decode.ask("audit") == (0, 0, 0), [], "decode frees its memory")
