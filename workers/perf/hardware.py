"""What a machine can do at best, with the source of every figure.

Rates are dense peaks for one device; how much of a peak real kernels reach is `efficiency.py`'s
business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from workers.perf.errors import PerfError
from workers.perf.precision import Math

_WIDER: dict[Math, tuple[Math, ...]] = {
    "fp4": ("fp4", "fp8", "bf16", "fp32"),
    "fp8": ("fp8", "bf16", "fp32"),
    "bf16": ("bf16", "fp32"),
    "fp32": ("fp32",),
}


@dataclass(frozen=True, slots=True)
class HardwareSpec:
    """One device and its links.

    Attributes:
        flops_per_s: dense peak for each arithmetic that the device has.
        memory_bytes_per_s, memory_bytes: of its main memory.
        domain: devices in one scale-up (NVLink) domain.
        scale_up_bytes_per_s: one direction of one device's scale-up links.
        scale_up_latency_s: one exchange of small messages over them.
        scale_out_bytes_per_s, scale_out_latency_s: the same of its share of the network.
        sources: by field, where the figures come from.
    """

    name: str
    flops_per_s: Mapping[Math, float]
    memory_bytes_per_s: float
    memory_bytes: float
    domain: int
    scale_up_bytes_per_s: float
    scale_up_latency_s: float
    scale_out_bytes_per_s: float
    scale_out_latency_s: float
    sources: Mapping[str, str] = field(default_factory=dict)

    def rate(self, math: Math) -> float:
        """FLOP/s in an arithmetic, or in the narrowest wider one that the device has.

        Weights kept in a format that the device cannot multiply are widened on the way.
        """
        for wider in _WIDER[math]:
            if wider in self.flops_per_s:
                return self.flops_per_s[wider]
        raise PerfError(f"hardware {self.name!r}: no rate for {math} or anything wider")


# A remote store and its flag over NVLink take 1 to 2 microseconds; a message over InfiniBand or
# RoCE with GPUDirect 3 to 5. Kernel launch is hidden by CUDA graphs.
_NVLINK_LATENCY_S = 2e-6
_NETWORK_LATENCY_S = 5e-6
_LATENCIES = "assumed: one exchange between two devices, without a kernel's launch"
_NETWORK = "one 400 Gb/s ConnectX-7 port for each GPU"

_KNOWN = (
    HardwareSpec(
        name="h100",
        flops_per_s={"fp8": 1978.9e12, "bf16": 989.4e12, "fp32": 66.9e12},
        memory_bytes_per_s=3.35e12,
        memory_bytes=80e9,
        domain=8,
        scale_up_bytes_per_s=450e9,
        scale_up_latency_s=_NVLINK_LATENCY_S,
        scale_out_bytes_per_s=50e9,
        scale_out_latency_s=_NETWORK_LATENCY_S,
        sources={
            "flops_per_s": "NVIDIA H100 data sheet, SXM5, without sparsity",
            "memory": "NVIDIA H100 data sheet: 80 GB HBM3, 3.35 TB/s",
            "scale_up": "NVLink 4: 900 GB/s both ways together; HGX of 8",
            "scale_out": _NETWORK,
            "latency": _LATENCIES,
        },
    ),
    HardwareSpec(
        name="h200",
        flops_per_s={"fp8": 1978.9e12, "bf16": 989.4e12, "fp32": 66.9e12},
        memory_bytes_per_s=4.8e12,
        memory_bytes=141e9,
        domain=8,
        scale_up_bytes_per_s=450e9,
        scale_up_latency_s=_NVLINK_LATENCY_S,
        scale_out_bytes_per_s=50e9,
        scale_out_latency_s=_NETWORK_LATENCY_S,
        sources={
            "flops_per_s": "NVIDIA H200 data sheet, SXM, without sparsity",
            "memory": "NVIDIA H200 data sheet: 141 GB HBM3e, 4.8 TB/s",
            "scale_up": "NVLink 4: 900 GB/s both ways together; HGX of 8",
            "scale_out": _NETWORK,
            "latency": _LATENCIES,
        },
    ),
    HardwareSpec(
        name="b200",
        flops_per_s={"fp4": 9e15, "fp8": 4.5e15, "bf16": 2.25e15, "fp32": 75e12},
        memory_bytes_per_s=8e12,
        memory_bytes=180e9,
        domain=8,
        scale_up_bytes_per_s=900e9,
        scale_up_latency_s=_NVLINK_LATENCY_S,
        scale_out_bytes_per_s=50e9,
        scale_out_latency_s=_NETWORK_LATENCY_S,
        sources={
            "flops_per_s": "NVIDIA DGX B200 data sheet, an eighth, without sparsity",
            "memory": "NVIDIA DGX B200 data sheet: 1,440 GB and 64 TB/s, an eighth",
            "scale_up": "NVLink 5: 1.8 TB/s both ways together; HGX of 8",
            "scale_out": _NETWORK,
            "latency": _LATENCIES,
        },
    ),
    HardwareSpec(
        name="gb200",
        flops_per_s={"fp4": 10e15, "fp8": 5e15, "bf16": 2.5e15, "fp32": 80e12},
        memory_bytes_per_s=8e12,
        memory_bytes=186e9,
        domain=72,
        scale_up_bytes_per_s=900e9,
        scale_up_latency_s=_NVLINK_LATENCY_S,
        scale_out_bytes_per_s=50e9,
        scale_out_latency_s=_NETWORK_LATENCY_S,
        sources={
            "flops_per_s": "NVIDIA GB200 NVL72 data sheet, a 72nd, without sparsity; FP4 as in "
            "LatentMoE, arXiv 2601.18089, section 3.2",
            "memory": "NVIDIA GB200 NVL72 data sheet: 13.4 TB and 576 TB/s, a 72nd",
            "scale_up": "NVLink 5: 130 TB/s, a 72nd, one way; arXiv 2601.18089, section 3.2",
            "scale_out": _NETWORK,
            "latency": _LATENCIES,
        },
    ),
)
_BY_NAME = {spec.name: spec for spec in _KNOWN} | {"gb200-nvl72": _KNOWN[-1]}
KNOWN_HARDWARE: tuple[str, ...] = tuple(spec.name for spec in _KNOWN)


def known_hardware(name: str) -> HardwareSpec:
    """A device by name, in any case. Raises PerfError."""
    spec = _BY_NAME.get(name.lower().replace("_", "-").replace(" ", "-"))
    if spec is None:
        raise PerfError(
            f"hardware {name!r}: unknown; choose one of {', '.join(KNOWN_HARDWARE)}, or measure "
            "this machine with `tandem calibrate` and give its --profile"
        )
    return spec
