"""The policies by the names that `tandem simulate --policy` and the report use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from orchestrator.autoscaler.baselines import PerRole, RayDefault, Threshold
from orchestrator.autoscaler.ground import Ground
from orchestrator.autoscaler.observation import CountPolicy
from orchestrator.autoscaler.policy import TandemPolicy

Reactive = Literal["tandem", "ray-default", "per-role", "threshold"]
Clairvoyant = Literal["static-best", "oracle"]

# Those that see only what has been.
REACTIVE: dict[Reactive, Callable[[Ground], CountPolicy]] = {
    "tandem": TandemPolicy,
    "ray-default": RayDefault,
    "per-role": PerRole,
    "threshold": Threshold,
}
# Those that are looked for with the whole trace in hand (`comparison/search.py`).
CLAIRVOYANT: tuple[Clairvoyant, ...] = ("static-best", "oracle")
NAMES: tuple[str, ...] = (*REACTIVE, *CLAIRVOYANT)
