"""Compiles every kernel for a GPU that need not be there, down to machine code.

Exists because the interpreter accepts much that the compiler does not. Launches are those that the
wrappers make at the shapes of Nemotron 3 Super; instead of being launched, each is compiled, and
what it needs of the GPU is printed as one JSON object a line. Run as a program of its own: whether
kernels are interpreted or compiled is fixed when Triton is imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from workers.kernels import latent_experts, mamba_window, paged_attention


@dataclass(frozen=True, slots=True)
class AbsentGpu:
    """What the compiler asks of a driver."""

    capability: int

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of its stack and local memory (where registers spill)."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        found = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    pairs = [item.split(":") for item in found.split() if item.count(":") == 1]
    values = {name: int(value) for name, value in pairs if value.isdigit()}
    return {"registers": values["REG"], "stack": values["STACK"], "local": values["LOCAL"]}


def _compile_instead_of_launching(capability: int) -> None:
    driver.set_active(AbsentGpu(capability))
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: object, **options: object) -> object:
        built = run(self, *args, **{**options, "warmup": True})
        row = {
            "kernel": self.fn.__name__,
            "capability": capability,
            "types": sorted({str(a.dtype) for a in args if isinstance(a, torch.Tensor)}),
            "shared_bytes": built.metadata.shared,
            **_resources(built.asm["cubin"]),
        }
        sys.stdout.write(json.dumps(row) + "\n")
        return built

    JITFunction.run = compile_only


def _launch_all(dtype: torch.dtype, width: int) -> None:
    kv = torch.empty(2, 1, 2, 2, 16, 128, dtype=dtype)
    q = torch.empty(2, width, 32, 128, dtype=dtype)
    tables = torch.zeros(2, 128, dtype=torch.int64)
    visible = torch.ones(2, width, dtype=torch.int64)
    paged_attention.attend(q, kv[:, 0], tables, visible)
    paged_attention.attend(q, kv[:, 0], tables[:, :1].contiguous(), visible)

    heads, channels = 128, 10240
    inputs = torch.empty(2, 3 + width, channels, dtype=dtype)
    mixed = mamba_window.convolve(
        inputs, torch.empty(4, channels, dtype=dtype), torch.empty(channels, dtype=dtype)
    )
    mamba_window.scan(
        mixed,
        torch.empty(2, width, heads),
        torch.empty(heads),
        torch.empty(2, 1, heads, 64, 128)[:, 0],
        torch.tensor([0, 1]),
        groups=8,
        kept=1,
        read=width,
    )

    experts, size, narrow = 4, 2688, 1024
    weights = torch.empty(experts, size, narrow, dtype=dtype)
    for tokens in (1, 16 * width):
        indices = torch.zeros(tokens, 4, dtype=torch.int64)
        x = torch.empty(tokens, narrow, dtype=dtype)
        latent_experts.run_experts(x, indices, torch.empty(tokens, 4), weights, weights)


if __name__ == "__main__":
    _compile_instead_of_launching(int(sys.argv[1]))
    for one_dtype in (torch.bfloat16, torch.float32):
        for one_width in (1, 8):
            _launch_all(one_dtype, one_width)
