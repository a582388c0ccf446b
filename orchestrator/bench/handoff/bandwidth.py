"""How fast state moves between two layouts, beside one contiguous write of as many bytes.

Both are measured in turns between the same two processes, over the same agents. A rank's raw write
is one descriptor of its share of the bytes. Ranks write one after the other here; what counts is
the rank that takes longest, on either side of the comparison.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import numpy as np

from orchestrator.bench.handoff.shapes import Pair
from orchestrator.bench.handoff.side import Peer, Side
from protos.tandem.v1.handoff_pb2 import HandoffControl, HandoffTicket
from workers.handoff.agent import RemoteMemory
from workers.handoff.manifest import to_notification
from workers.handoff.sender import Sent
from workers.state.layout import KV

_HANDLE = 1


@dataclass(frozen=True, slots=True)
class Moved:
    """Medians over rounds for one pair of layouts and one length.

    `write_ms` is the time in which NIXL wrote, `whole_ms` from the order to write until decode had
    checked everything, both of a prompt that is sent at once.
    """

    pair: str
    tokens: int
    moved_bytes: int
    descriptors: int
    raw_ms: float
    write_ms: float
    whole_ms: float
    ratio_to_raw: float

    def row(self) -> dict[str, object]:
        """As the document has it."""
        return {
            "pair": self.pair,
            "tokens": self.tokens,
            "bytes": self.moved_bytes,
            "descriptors": self.descriptors,
            "raw_ms": round(self.raw_ms, 3),
            "write_ms": round(self.write_ms, 3),
            "whole_ms": round(self.whole_ms, 3),
            "ratio_to_raw": round(self.ratio_to_raw, 3),
        }


def measure_pair(pair: Pair, lengths: tuple[int, ...], rounds: int) -> list[Moved]:
    """All lengths between two processes that are started for it."""
    source, target = pair.layouts
    longest = max(lengths)
    peer = Peer(target, longest)
    side = Side("prefill", source, longest)
    try:
        return [_measure(pair, side, peer, tokens, rounds) for tokens in lengths]
    finally:
        side.close()
        peer.close()


def _measure(pair: Pair, side: Side, peer: Peer, tokens: int, rounds: int) -> Moved:
    raws, writes, wholes, ratios = [], [], [], []
    for turn in range(rounds + 1):
        sent, whole_ms, ticket = _hand_off(side, peer, tokens)
        report = sent.report
        moved_bytes = report.kv_bytes + report.mamba_bytes
        raw_ms = _raw_write(side, ticket, moved_bytes)
        if turn == 0:
            continue  # the first one connects
        raws.append(raw_ms)
        writes.append(report.transfer_ms)
        wholes.append(whole_ms)
        ratios.append(raw_ms / report.transfer_ms)
    return Moved(
        pair.name,
        tokens,
        moved_bytes,
        report.descriptors,
        median(raws),
        median(writes),
        median(wholes),
        median(ratios),
    )


def _hand_off(side: Side, peer: Peer, tokens: int) -> tuple[Sent, float, HandoffTicket]:
    """The whole state at once, as for a prompt that was in the prefix cache."""
    ticket = HandoffTicket.FromString(peer.ticket(tokens))
    sender = side.handoffs.sender
    now_s = time.monotonic()
    sender.open(_HANDLE, ticket, side.blocks, 0, tokens, now_s)
    outcomes = []
    while not sender.granted(_HANDLE):
        outcomes += side.poll()
    began_s = time.monotonic()
    sender.finish(_HANDLE, 1, began_s)
    if not peer.arrived(lambda: outcomes.extend(side.poll())):
        raise RuntimeError("decode refused the state: the hand-off is wrong, not slow")
    whole_ms = (time.monotonic() - began_s) * 1000.0
    while not outcomes:
        outcomes += side.poll()
    (sent,) = outcomes
    assert isinstance(sent, Sent)
    return sent, whole_ms, ticket


def _raw_write(side: Side, ticket: HandoffTicket, total_bytes: int) -> float:
    """Milliseconds of one contiguous write, of the rank that takes longest.

    The KV tensors are the longest runs of registered memory at hand: what does not fit into one is
    written in a further pass over it.
    """
    longest_s = 0.0
    share = total_bytes // len(side.stores)
    for rank, (agent, store) in enumerate(zip(side.agents, side.stores, strict=True)):
        target = ticket.ranks[rank % len(ticket.ranks)]
        remote = RemoteMemory(
            target.agent_name, target.agent_metadata, target.memory_type, target.device_id
        )
        (there,) = (tensor for tensor in target.tensors if tensor.kind == KV)
        here = store.base(KV)
        agent.connect(remote)
        left, elapsed_s = share, 0.0
        while left:
            length = min(left, here.length_bytes, there.parts * there.part_bytes)
            copies = np.array([[here.address, there.address, length]], dtype=np.uint64)
            began_s = time.monotonic()
            transfer = agent.write(
                copies, store.memory(), remote, to_notification(HandoffControl())
            )
            while not transfer.poll():
                pass
            elapsed_s += time.monotonic() - began_s
            transfer.release()
            left -= length
        longest_s = max(longest_s, elapsed_s)
    return longest_s * 1000.0
