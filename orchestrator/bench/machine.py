"""What a bench ran on; figures without it mean nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

_PEERS = ("torch", "transformers", "vllm")


def usable_cores() -> int:
    """Cores that this process may use; `taskset` narrows them."""
    return len(os.sched_getaffinity(0))


def describe_machine(versions: Mapping[str, str]) -> dict[str, object]:
    """The `machine` of a bench's document.

    Args:
        versions: of what took part; None in the document for peers that did not.
    """
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {
            "python": platform.python_version(),
            **dict.fromkeys(_PEERS),
            **versions,
        },
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
