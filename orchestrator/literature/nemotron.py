"""Nemotron 3 Super: what it is made of, and its throughput beside two models of its size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from orchestrator.literature.check import Check, Section
from orchestrator.planner.phases import Drafting, decode_points
from orchestrator.planner.workload import fixed
from workers.perf.efficiency import ASSUMED
from workers.perf.engine_times import PhaseModel
from workers.perf.hardware import known_hardware
from workers.perf.known_models import known_model
from workers.perf.layouts import Layout, Layouts
from workers.perf.memory import sequence_bytes, weight_bytes
from workers.perf.precision import precision_named

_ISL, _OSL = 8192, 65536
_PRECISIONS = {
    "nemotron-3-super": "nvfp4",
    "gpt-oss-120b": "mxfp4",
    "qwen3.5-122b": "bf16",
}
_PUBLISHED = {"gpt-oss-120b": 2.2, "qwen3.5-122b": 7.5}
_RELEASE_BYTES = 80_297_329_824
_GPU_COUNTS = (2, 4, 8)


def section() -> Section:
    """Shape, state, and throughput at 8k/64k."""
    super_model = known_model("nemotron-3-super")
    state = sequence_bytes(super_model, precision_named("nvfp4"), 0.0)
    conv_bytes = super_model.stack.conv_elements * 2.0
    weights = weight_bytes(super_model, Layouts.of([Layout()]), precision_named("nvfp4"))
    return Section(
        title="Nemotron 3 Super: shape and throughput",
        source="arXiv 2604.12374, table 1 and throughput; the published checkpoint",
        method=(
            f"Throughput of decode at ISL {_ISL}, OSL {_OSL} on B200, the best layout and batch of "
            "each model, no latency target, no drafts, assumed kernel efficiencies; NVFP4, MXFP4 "
            "with FP8 KV and BF16 as in the paper. GPU count, concurrency and whether MTP was on "
            "are not stated there, so several counts are shown; its recipe keeps recurrent "
            "state in FP16, the checkpoint's config in FP32. The shape of Qwen3.5-122B is "
            "inferred (see known_models.py)."
        ),
        checks=(
            Check("parameters, 10⁹", 120.67, super_model.parameters / 1e9, 1e-4),
            Check("active parameters, 10⁹", 12.77, super_model.active_parameters / 1e9, 1e-4),
            Check(
                "KV elements of a token",
                4096.0,
                float(super_model.stack.kv_elements_per_token),
                1e-9,
            ),
            Check("FP32 state of a sequence, MB", 167.8, (state.state - conv_bytes) / 1e6, 1e-3),
            Check(
                "bytes of the NVFP4 release, 10⁹",
                _RELEASE_BYTES / 1e9,
                float(weights[0]) / 1e9,
                0.02,
            ),
            *_throughput_checks(),
        ),
    )


def decode_throughput(name: str, gpus: int, state_bytes: float = 4.0) -> float:
    """Tokens a second for each GPU of the best layout and batch on up to `gpus` B200."""
    precision = replace(precision_named(_PRECISIONS[name]), state_bytes=state_bytes)
    phase = PhaseModel(known_model(name), known_hardware("b200"), precision, ASSUMED)
    points, _ = decode_points(phase, fixed(_ISL, _OSL), gpus, Drafting())
    return float(np.max(points.rate / points.ranks)) * _OSL


def _throughput_checks() -> list[Check]:
    checks = []
    for other, published in _PUBLISHED.items():
        for gpus in _GPU_COUNTS:
            for state_bytes, note in ((4.0, "FP32"), (2.0, "FP16")):
                ours = decode_throughput("nemotron-3-super", gpus, state_bytes)
                checks.append(
                    Check(
                        f"throughput over {other}, up to {gpus} B200, state in {note}, x",
                        published,
                        ours / decode_throughput(other, gpus),
                        0.2,
                        "the paper measured vLLM and TensorRT-LLM, whose kernels reach different "
                        "shares of the roofline for each model; ours gives all the same shares",
                        (0.4, 1.8),
                    )
                )
    return checks
