"""From what a user has (a plan, or a cluster's file) to what is simulated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import UsageError
from orchestrator.planner.asking import find_model
from orchestrator.planner.profile import read_profile
from orchestrator.planner.question import usual_precision
from orchestrator.runtime.worker_configs import worker_config
from orchestrator.simulator.cluster import Cluster, WorkerKind
from orchestrator.simulator.pools import ROLES
from orchestrator.simulator.prefixes import TRACE_BLOCK_TOKENS
from orchestrator.spec import ClusterSpec, load_spec
from router.core.events import Role
from router.core.policy import ClassPolicy, Policy
from workers.perf.efficiency import ASSUMED
from workers.perf.engine_times import PhaseModel
from workers.perf.handoff import sharding_devices
from workers.perf.hardware import known_hardware
from workers.perf.layouts import Layout, Layouts
from workers.perf.memory import RESERVED_SHARE, state_bytes, weight_bytes
from workers.perf.precision import precision_named
from workers.perf.speculation import acceptance_rate
from workers.perf.step_times import StepTimes

# Prompts that a planned prefill worker holds at most: being read, waiting, or on their way; each
# with room for so many times the mean prompt.
_PLANNED_PROMPTS = 64
_PROMPT_ROOM = 2.0
# A model without KV is limited by its slots alone.
_ENDLESS_TOKENS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Options:
    """What neither a plan nor a cluster's file says.

    Attributes:
        gpus: that workers can be started on; None: as many as they need.
        cold_start_s: of a worker that has its GPUs.
        prefix_cache: whether workers cache prefixes.
        step_tokens: most tokens of one engine step; None: what the plan, or a real worker, has.
        acceptance: acceptance length at the draft length of the cluster's file.
        queue_limit: requests that may wait in the router.
        patience: how many times its TTFT target a request may wait before it is shed.
    """

    gpus: int | None = None
    cold_start_s: float = 60.0
    prefix_cache: bool = True
    step_tokens: int | None = None
    acceptance: float | None = None
    queue_limit: int = 1024
    patience: float = 10.0


class _Open(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Layout(_Open):
    pp: int = Field(ge=1)
    dp: int = Field(ge=1)
    kvp: int = Field(ge=1)
    tpa: int = Field(ge=1)
    tpf: int = Field(ge=1)
    ep: int = Field(ge=1)
    hopb: bool

    @property
    def layout(self) -> Layout:
        return Layout(self.pp, self.dp, self.kvp, self.tpa, self.tpf, self.ep, self.hopb)


class _PlannedPool(_Open):
    count: int = Field(ge=1)
    layout: _Layout
    batch: int = Field(ge=1)


class _Best(_Open):
    prefill: _PlannedPool
    decode: _PlannedPool
    chunk_tokens: int = Field(ge=1)
    draft_tokens: int = Field(ge=0)
    acceptance_length: float = Field(ge=1.0)


class _Question(_Open):
    model: str
    hardware: str
    precision: str
    isl_tokens: float = Field(gt=0)
    ttft_ms: float = Field(gt=0)
    itl_ms: float = Field(gt=0)


class _PlanFile(_Open):
    question: _Question
    best: _Best


@dataclass(frozen=True, slots=True)
class Machines:
    """The model on its hardware, as `phase` times it."""

    phase: PhaseModel
    options: Options

    @classmethod
    def of(
        cls,
        model: str,
        hardware: str | None,
        precision: str,
        profile: Path | None,
        options: Options,
    ) -> Machines:
        """By name; `precision` may be auto. Raises PerfError."""
        spec, efficiency = find_model(model), ASSUMED
        if profile is not None:
            measured = read_profile(profile)
            machine, efficiency = measured.hardware, measured.efficiency
        elif hardware is not None:
            machine = known_hardware(hardware)
        else:
            raise UsageError("--hardware: name h100, h200, b200 or gb200, or give a --profile")
        chosen = (
            usual_precision(spec, machine) if precision == "auto" else precision_named(precision)
        )
        return cls(PhaseModel(spec, machine, chosen, efficiency), options)

    def kind(
        self,
        layout: Layout,
        *,
        slots: int,
        step_tokens: int,
        draft_tokens: int,
        acceptance_length: float,
        kv_tokens: int | None = None,
    ) -> WorkerKind:
        """A worker of one layout; `kv_tokens` None is what fits. Raises UsageError."""
        phase, options = self.phase, self.options
        rate = acceptance_rate(acceptance_length, draft_tokens) if draft_tokens else 0.0
        times = StepTimes(
            phase,
            layout,
            draft_tokens=draft_tokens,
            acceptance_rate=rate,
            most_sequences=max(slots, 64),
            most_prompt_tokens=step_tokens,
        )
        memory = _Memory.of(phase, layout, drafts=draft_tokens > 0)
        if kv_tokens is None:
            kv_tokens = memory.room(slots)
            if not kv_tokens:
                raise UsageError(
                    f"{phase.model.name} in {phase.precision.name} with {layout} leaves no room "
                    f"for {slots} requests on {phase.hardware.name}"
                )
        elif memory.room(slots) < kv_tokens:
            raise UsageError(
                f"kv_tokens {kv_tokens} and max_requests {slots} do not fit into "
                f"{phase.hardware.name} with {layout}: room for {memory.room(slots)} tokens",
                "use more GPUs for a worker, or lower either",
            )
        hardware = phase.hardware
        devices = float(sharding_devices(phase.model, Layouts.of([layout]))[0])
        link = hardware.scale_out_bytes_per_s * phase.efficiency.link * devices
        return WorkerKind(
            times=times,
            layout=str(layout),
            gpus=layout.ranks,
            max_requests=slots,
            kv_tokens=kv_tokens,
            step_tokens=step_tokens,
            draft_tokens=draft_tokens,
            out_bytes_per_s=link,
            in_bytes_per_s=link,
            link_latency_s=hardware.scale_out_latency_s,
            cached_block_tokens=memory.cached_block_tokens if options.prefix_cache else 0,
            cold_start_s=options.cold_start_s,
        )

    def prompts_held(self, layout: Layout, least: int, prompt_tokens: float, drafts: int) -> int:
        """How many prompts a prefill worker can hold, up to what is of use."""
        memory = _Memory.of(self.phase, layout, drafts=drafts > 0)
        count = max(_PLANNED_PROMPTS, least)
        while count > least and memory.room(count) < count * _PROMPT_ROOM * prompt_tokens:
            count -= 1
        return count


@dataclass(frozen=True, slots=True)
class _Memory:
    """What the weights leave of a worker's fullest device, and what requests take of it."""

    free_bytes: float
    request_bytes: float
    token_bytes: float
    groups: int

    @classmethod
    def of(cls, phase: PhaseModel, layout: Layout, *, drafts: bool) -> _Memory:
        layouts, model, precision = Layouts.of([layout]), phase.model, phase.precision
        weights = weight_bytes(model, layouts, precision, drafts=drafts)
        usable = phase.hardware.memory_bytes * (1.0 - RESERVED_SHARE)
        constant, long = (
            float(state_bytes(model, layouts, precision, tokens, drafts=drafts)[0])
            for tokens in (0.0, 16384.0)
        )
        free = float(np.asarray(usable - weights).reshape(-1)[0])
        return cls(free, constant, (long - constant) / 16384.0, layout.dp)

    def room(self, slots: int) -> int:
        """Tokens of KV beside so many requests."""
        left = self.free_bytes - self.request_bytes * -(-slots // self.groups)
        if self.token_bytes <= 0.0:
            return _ENDLESS_TOKENS if left >= 0.0 else 0
        return max(int(left / self.token_bytes) * self.groups, 0)

    @property
    def cached_block_tokens(self) -> int:
        state = self.request_bytes / self.token_bytes if self.token_bytes > 0.0 else 0.0
        return TRACE_BLOCK_TOKENS + round(state)


def read_cluster(
    path: Path,
    model: str | None,
    hardware: str | None,
    precision: str,
    profile: Path | None,
    options: Options,
) -> Cluster:
    """A cluster from the output of `tandem plan --json` or from a cluster's YAML file.

    Of a plan, model, hardware and precision are the plan's unless they are given. Raises
    UsageError, SpecError and PerfError.
    """
    if not path.is_file():
        raise UsageError(
            f"--cluster {path}: there is no such file",
            "name a cluster.yaml, or what `tandem plan --json` printed",
        )
    if path.suffix != ".json":
        spec = load_spec(path)
        machines = Machines.of(model or spec.model.path, hardware, precision, profile, options)
        return cluster_of_spec(spec, machines)
    plan = _read_plan(path)
    asked = plan.question
    machines = Machines.of(
        model or asked.model,
        hardware or asked.hardware,
        asked.precision if precision == "auto" else precision,
        profile,
        options,
    )
    return _cluster_of_plan(plan, machines)


def cluster_of_plan(document: Mapping[str, object], machines: Machines) -> Cluster:
    """The best point of a plan. Raises UsageError."""
    return _cluster_of_plan(_checked(document, "the plan"), machines)


def _cluster_of_plan(plan: _PlanFile, machines: Machines) -> Cluster:
    best, asked, options = plan.best, plan.question, machines.options
    drafts, accepted = best.draft_tokens, best.acceptance_length
    batch = best.prefill.batch
    kinds: dict[Role, WorkerKind] = {
        "prefill": machines.kind(
            best.prefill.layout.layout,
            slots=machines.prompts_held(
                best.prefill.layout.layout, batch, asked.isl_tokens, drafts
            ),
            step_tokens=options.step_tokens or best.chunk_tokens * batch,
            draft_tokens=drafts,
            acceptance_length=accepted,
        ),
        "decode": machines.kind(
            best.decode.layout.layout,
            slots=best.decode.batch,
            step_tokens=options.step_tokens or max(best.chunk_tokens, best.decode.batch),
            draft_tokens=drafts,
            acceptance_length=accepted,
        ),
    }
    target = ClassPolicy("planned", asked.ttft_ms / 1e3, asked.itl_ms / 1e3)
    return Cluster(
        kinds,
        {"prefill": best.prefill.count, "decode": best.decode.count},
        _policy((target,), options),
        options.gpus,
        _description(machines.phase, kinds),
        machines.phase.efficiency.error,
    )


def cluster_of_spec(spec: ClusterSpec, machines: Machines) -> Cluster:
    """The pools of a cluster's file at their least sizes. Raises UsageError."""
    options, decode = machines.options, spec.decode.layout
    tp = spec.prefill.layout.tp
    layouts: dict[Role, Layout] = {
        "prefill": Layout(tpa=tp, tpf=tp),
        "decode": Layout(
            kvp=decode.kvp, tpa=decode.tpa, tpf=decode.tpf, ep=decode.ep, hopb=decode.hop_b
        ),
    }
    drafts, accepted = 0, 1.0
    if options.acceptance is not None:
        if not isinstance(spec.decode.draft_tokens, int) or spec.decode.draft_tokens < 1:
            raise UsageError(
                "--acceptance needs decode.draft_tokens to be a number from 1 to 7 in the "
                "cluster's file: an acceptance length belongs to a draft length"
            )
        drafts, accepted = spec.decode.draft_tokens, options.acceptance
    kinds: dict[Role, WorkerKind] = {}
    for role in ROLES:
        real = worker_config(spec, role, None, "simulated")
        kinds[role] = machines.kind(
            layouts[role],
            slots=real.max_requests,
            step_tokens=options.step_tokens or real.step_tokens,
            draft_tokens=drafts,
            acceptance_length=accepted,
            kv_tokens=real.kv_tokens,
        )
    classes = tuple(
        ClassPolicy(name, one.ttft_ms / 1e3, one.itl_ms / 1e3, one.weight)
        for name, one in spec.classes.items()
    )
    return Cluster(
        kinds,
        {"prefill": spec.prefill.workers.min, "decode": spec.decode.workers.min},
        _policy(classes, options),
        options.gpus,
        _description(machines.phase, kinds),
        machines.phase.efficiency.error,
    )


def _policy(classes: tuple[ClassPolicy, ...], options: Options) -> Policy:
    return Policy(classes=classes, queue_limit=options.queue_limit, patience=options.patience)


def _description(phase: PhaseModel, kinds: Mapping[Role, WorkerKind]) -> str:
    return (
        f"{phase.model.name} in {phase.precision.name} on {phase.hardware.name}; "
        f"prefill {kinds['prefill'].layout}, decode {kinds['decode'].layout}"
    )


def _read_plan(path: Path) -> _PlanFile:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--cluster {path}: cannot be read: {error}") from error
    return _checked(values, f"--cluster {path}")


def _checked(values: object, name: str) -> _PlanFile:
    try:
        return _PlanFile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{name}: {where}: {first['msg']}",
            "a plan is what `tandem plan --json` prints; one without a best point cannot be run",
        ) from error
