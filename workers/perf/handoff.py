"""What a hand-off carries from prefill to decode, and how long the link needs.

KV streams layer by layer while the prompt is read, so it costs time only where the link is slower
than prefill; recurrent state and the last chunk's KV are there only at the end (Beyond the Buzz,
arXiv 2506.05508, section 5, assumes the same; `docs/architecture.md`, hand-off).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workers.perf.arrays import Floats
from workers.perf.forward import kv_share
from workers.perf.hardware import HardwareSpec
from workers.perf.layouts import Layouts
from workers.perf.memory import SequenceBytes
from workers.perf.model_spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Transfer:
    """Bytes of one prompt: `early` can be sent while the prompt is read, `late` only at its end."""

    early_bytes: float
    late_bytes: float

    @property
    def total_bytes(self) -> float:
        return self.early_bytes + self.late_bytes


def transfer_of(held: SequenceBytes, last_chunk_share: float) -> Transfer:
    """Split what a sequence holds by when it is ready.

    Args:
        held: state of the prompt (`memory.sequence_bytes`).
        last_chunk_share: share of the prompt's tokens in its last chunk.
    """
    streams = held.kv + held.draft
    late = held.state + streams * last_chunk_share
    return Transfer(streams * (1.0 - last_chunk_share), late)


def sharding_devices(model: ModelSpec, layouts: Layouts) -> Floats:
    """Devices that uniquely hold parts of one sequence, so that their links add up.

    TPA beyond the KV heads repeats KV and does not count (Beyond the Buzz, arXiv 2506.05508,
    section 5: NumGPU counts only GPUs that uniquely shard KV).
    """
    shards: Floats = np.ones(np.shape(layouts.pp))
    if model.stack.attention:
        shards = np.min(
            [layouts.kvp / kv_share(group, layouts) for group in model.stack.attention], axis=0
        )
    elif model.stack.recurrence:
        shards = layouts.group.astype(np.float64)
    return shards * layouts.pp


def egress_bytes_per_s(
    bytes_per_prompt: float, prompts: Floats, prefill_s: Floats, devices: Floats
) -> Floats:
    """BW_egress = layers x B x ISL x d_head x heads x bytes / (FTL x NumGPU).

    Beyond the Buzz, arXiv 2506.05508, equation 1.
    `bytes_per_prompt` stands for the product of sizes, which for hybrid models is no product.
    """
    return bytes_per_prompt * prompts / (prefill_s * devices)


def ingress_bytes_per_s(
    bytes_per_prompt: float, sequences: Floats, step_s: Floats, osl: float, devices: Floats
) -> Floats:
    """BW_ingress: decode takes B / (TTL x OSL) prompts a second (arXiv 2506.05508, equation 2)."""
    return bytes_per_prompt * sequences / (step_s * osl * devices)


def prompts_per_s(
    total_bytes: float, hardware: HardwareSpec, share: float, devices: Floats
) -> Floats:
    """Prompts a second that the links of `devices` devices carry, at a share of their bandwidth."""
    return devices * hardware.scale_out_bytes_per_s * share / total_bytes


def exposed_s(
    transfer: Transfer, read_s: Floats, hardware: HardwareSpec, share: float, devices: Floats
) -> Floats:
    """Time between the end of prefill and the state's arrival.

    What was ready early has `read_s` seconds to leave; the rest waits behind it.
    """
    bandwidth = devices * hardware.scale_out_bytes_per_s * share
    behind_s = np.maximum(transfer.early_bytes / bandwidth - read_s, 0.0)
    return hardware.scale_out_latency_s + behind_s + transfer.late_bytes / bandwidth
