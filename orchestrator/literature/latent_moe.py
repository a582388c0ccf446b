"""LatentMoE: when experts are bound by computing, and what their exchanges cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from orchestrator.literature.check import Check, Section
from workers.perf.efficiency import IDEAL
from workers.perf.forward import Forward, decoding
from workers.perf.hardware import known_hardware
from workers.perf.known_models import known_model
from workers.perf.layouts import Layout, Layouts
from workers.perf.mixers import Experts
from workers.perf.model_spec import Stack
from workers.perf.precision import precision_named

_EP = 64
_ALPHA = 4
# Dispatch in FP4, combine in BF16 (section 3.2).
_EXCHANGED_BYTES = 0.5 + 2.0


def section() -> Section:
    """The performance model of section 3.2."""
    experts = known_model("qwen3-235b").stack.experts[0]
    latent = replace(experts, latent=experts.hidden // _ALPHA)
    return Section(
        title="LatentMoE: ridge, communication and latent exchanges",
        source="arXiv 2601.18089, section 3.2",
        method=(
            "Qwen3-235B's experts (128, d = 4096, m = 1536), EP 64 on GB200: 10 PFLOP/s in FP4, "
            "8 TB/s, 900 GB/s each way. The exchanged bytes come from a pass of our model on links "
            "without latency."
        ),
        checks=(
            Check(
                "tokens of an expert from which it is bound by computing",
                1418.0,
                compute_bound_tokens(experts),
                2e-3,
            ),
            Check(
                "time of exchanging over computing, 5F / (4 m BW)",
                9.0,
                communication_over_compute(experts),
                0.01,
            ),
            Check(
                f"bytes exchanged, full over latent, alpha = {_ALPHA}",
                float(_ALPHA),
                exchange_s(experts) / exchange_s(latent),
                1e-6,
            ),
        ),
    )


def compute_bound_tokens(experts: Experts) -> float:
    """t at which I = 2 t d m / (d m + t (d + m)) reaches the ridge F / BW of the device, with one
    byte an element."""
    hardware = known_hardware("gb200")
    ridge = hardware.rate("fp4") / hardware.memory_bytes_per_s
    d, m = experts.width, experts.expert_hidden
    return ridge * d * m / (2.0 * d * m - ridge * (d + m))


def communication_over_compute(experts: Experts) -> float:
    """2.5 d bytes a token over NVLink against its 2 d m operations, of one matrix."""
    hardware = known_hardware("gb200")
    exchanged_s = _EXCHANGED_BYTES * experts.width / hardware.scale_up_bytes_per_s
    computed_s = 2.0 * experts.width * experts.expert_hidden / hardware.rate("fp4")
    return exchanged_s / computed_s


def exchange_s(experts: Experts) -> float:
    """Seconds of dispatch and combine in a pass of one layer, without latency."""
    hardware = replace(known_hardware("gb200"), scale_up_latency_s=0.0, scale_out_latency_s=0.0)
    stack = Stack(experts=(replace(experts, layers=1),))
    forward = Forward(stack, experts.hidden, 0, hardware, precision_named("fp4"), IDEAL)
    layouts = Layouts.of([Layout(dp=_EP, ep=_EP)])
    batch = decoding(np.array([4096.0]), np.ones(()), np.zeros(()))
    parts = forward.pass_times(layouts, batch, detailed=True).parts
    return float(np.sum(parts["dispatch and combine", "communication"]))
