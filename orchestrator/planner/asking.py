"""From what a person writes to a question: names to specs, files to lengths."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from loadgen.errors import LoadError
from loadgen.traces.reading import read_trace
from orchestrator.planner.profile import read_profile
from orchestrator.planner.question import Question, drafting_for, usual_precision
from orchestrator.planner.solve import Targets
from orchestrator.planner.workload import Workload, fixed, sampled
from workers.perf.config_json import model_from_config
from workers.perf.efficiency import ASSUMED
from workers.perf.errors import PerfError
from workers.perf.hardware import known_hardware
from workers.perf.known_models import known_model
from workers.perf.model_spec import ModelSpec
from workers.perf.precision import precision_named

_USUAL_HARDWARE = "h200"


@dataclass(frozen=True, slots=True)
class Wishes:
    """The flags of `tandem plan`; units are in their names.

    `hardware` None is that of the profile, or H200.
    """

    model: str
    hardware: str | None
    devices: int
    isl: int | None
    osl: int | None
    ttft_ms: float
    itl_ms: float
    requests_per_s: float | None = None
    prefix_hit: float = 0.0
    acceptance: float | None = None
    draft_tokens: int = 3
    trace: Path | None = None
    precision: str = "auto"
    percentile: float = 95.0
    profile: Path | None = None


def ask(wishes: Wishes) -> Question:
    """Put a question together. Raises PerfError, which names the flag that is wrong."""
    model = find_model(wishes.model)
    efficiency = ASSUMED
    if wishes.profile is not None:
        profile = read_profile(wishes.profile)
        hardware, efficiency = profile.hardware, profile.efficiency
        if wishes.hardware not in (None, hardware.name):
            raise PerfError(
                f"hardware {wishes.hardware!r}: the profile {wishes.profile} is of "
                f"{hardware.name!r}; leave --hardware out"
            )
    else:
        hardware = known_hardware(wishes.hardware or _USUAL_HARDWARE)
    auto = wishes.precision == "auto"
    precision = usual_precision(model, hardware) if auto else precision_named(wishes.precision)
    return Question(
        model=model,
        hardware=hardware,
        devices=wishes.devices,
        workload=_workload(wishes),
        targets=Targets(wishes.ttft_ms / 1e3, wishes.itl_ms / 1e3, wishes.percentile / 100.0),
        precision=precision,
        drafting=drafting_for(model, wishes.acceptance, wishes.draft_tokens),
        requests_per_s=wishes.requests_per_s,
        efficiency=efficiency,
    )


def find_model(name: str) -> ModelSpec:
    """A built-in model, or that of a folder's (or file's) config.json. Raises PerfError."""
    path = Path(name)
    file = path / "config.json" if path.is_dir() else path
    if path.is_dir() or path.suffix == ".json":
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PerfError(f"model {name}: {file} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise PerfError(f"model {name}: {file} is not a JSON object")
        return model_from_config(values, path.resolve().name, str(file))
    return known_model(name)


def _workload(wishes: Wishes) -> Workload:
    if wishes.trace is None:
        if wishes.isl is None or wishes.osl is None:
            raise PerfError("give --isl and --osl, or a --trace with the lengths of requests")
        return fixed(wishes.isl, wishes.osl, wishes.prefix_hit)
    if wishes.isl is not None or wishes.osl is not None:
        raise PerfError("--isl and --osl do not go with --trace, which has the lengths")
    try:
        requests = read_trace(wishes.trace)
    except LoadError as error:
        raise PerfError(f"--{error.message}") from error
    return sampled(
        [request.prompt_tokens for request in requests],
        [request.answer_tokens for request in requests],
        percentile=wishes.percentile / 100.0,
        prefix_hit=wishes.prefix_hit,
        name=wishes.trace.name,
    )
