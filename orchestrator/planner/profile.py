"""Profiles on disk: what `tandem calibrate` found out about a machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workers.perf.efficiency import Efficiency, Kind
from workers.perf.errors import PerfError
from workers.perf.hardware import HardwareSpec
from workers.perf.precision import Math

_CLOSED = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Profile:
    """A machine as it was measured, and how well its software uses it."""

    hardware: HardwareSpec
    efficiency: Efficiency


class _Machine(BaseModel):
    model_config = _CLOSED
    name: str
    flops_per_s: dict[Math, float]
    memory_bytes_per_s: float = Field(gt=0)
    memory_bytes: float = Field(gt=0)
    domain: int = Field(ge=1)
    scale_up_bytes_per_s: float = Field(gt=0)
    scale_up_latency_s: float = Field(ge=0)
    scale_out_bytes_per_s: float = Field(gt=0)
    scale_out_latency_s: float = Field(ge=0)
    sources: dict[str, str] = {}


class _Shares(BaseModel):
    model_config = _CLOSED
    name: str
    compute: dict[Kind, float]
    memory: dict[Kind, float]
    link: float = Field(gt=0)
    operation_s: float = Field(ge=0)
    step_s: float = Field(ge=0)
    sequence_s: float = Field(ge=0)
    prompt_s: float = Field(ge=0)
    draft_s: float = Field(ge=0)
    error: float | None
    notes: dict[str, str] = {}
    operations_s: dict[Kind, float] = {}


class _File(BaseModel):
    model_config = _CLOSED
    version: Literal[1] = 1
    hardware: _Machine
    efficiency: _Shares
    measurements: list[dict[str, float]] = []


def read_profile(path: Path) -> Profile:
    """Read a profile. Raises PerfError."""
    try:
        found = _File.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PerfError(f"--profile {path}: cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PerfError(f"--profile {path}: field '{where}': {first['msg']}") from error
    return Profile(
        HardwareSpec(**found.hardware.model_dump()), Efficiency(**found.efficiency.model_dump())
    )


def profile_text(profile: Profile, measurements: Sequence[Mapping[str, float]] = ()) -> str:
    """What `read_profile` reads."""
    hardware, efficiency = profile.hardware, profile.efficiency
    values = {
        "version": 1,
        "hardware": {name: getattr(hardware, name) for name in HardwareSpec.__slots__},
        "efficiency": {name: getattr(efficiency, name) for name in Efficiency.__slots__},
        "measurements": [dict(one) for one in measurements],
    }
    return json.dumps(values, indent=2) + "\n"
