"""Groups of every layout, one layout after the other, with and without overlap in turns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from orchestrator.bench.helix.formula import exchanged_bytes
from orchestrator.bench.helix.group import MeasuredGroup, Step, measured_group
from orchestrator.bench.helix.settings import Settings, name_of
from workers.model.config import ModelConfig
from workers.parallel.layout import ParallelLayout
from workers.parallel.traffic import Collective

_ELEMENT_BYTES = 4  # float32
_LEAST_STORED = 97  # a prompt that no turn, block or rank count divides


@dataclass(frozen=True, slots=True)
class Case:
    """One layout at one context and draft length; medians over all steps, exchanges of rank 0.

    `step_ratio` is the step time over that of one rank, and the `no_overlap` figures are those of
    the same group without HOP-B, both measured in turns with it.
    """

    layout: str
    ranks: int
    batch: int
    context_tokens: int
    draft_tokens: int
    step_ms: float
    step_ratio: float | None
    exposed_exchange_ms: float
    exposed_other_ms: float
    no_overlap_step_ms: float | None
    no_overlap_exposed_exchange_ms: float | None
    exchange_bytes: tuple[int, ...]  # of every step, overlapped or not; equal ones once
    formula_bytes: int
    other_bytes: int


@dataclass(frozen=True, slots=True)
class Memory:
    """KV of one prompt on the fullest KVP rank, and of all memory on rank 0."""

    layout: str
    kvp: int
    interleave: int
    prompt_tokens: int
    stored_tokens: int
    kv_bytes: int


@dataclass(slots=True)
class Findings:
    """Filled layout by layout."""

    cases: list[Case] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)


def run_helix_bench(settings: Settings, report: Callable[[str], None]) -> Findings:
    """Measure all layouts. Raises IllegalLayout when the model cannot be cut into one."""
    findings = Findings()
    model = ModelConfig.from_file(settings.model)
    with measured_group(settings, model, ParallelLayout(), hop_b=False) as single:
        for layout in settings.layouts:
            report(f"measuring {name_of(layout)}")
            with contextlib.ExitStack() as stack:

                def start(
                    hop_b: bool,
                    layout: ParallelLayout = layout,
                    stack: contextlib.ExitStack = stack,
                ) -> MeasuredGroup:
                    return stack.enter_context(measured_group(settings, model, layout, hop_b))

                alone = layout.size == 1
                ours = single if alone else start(True)
                plain = start(False) if layout.kvp > 1 and settings.batch > 1 else None
                for context in settings.contexts:
                    for draft_tokens in settings.draft_tokens:
                        groups = {"ours": ours}
                        if not alone:
                            groups["single"] = single
                        if plain is not None:
                            groups["plain"] = plain
                        steps = _in_turns(settings, groups, context, draft_tokens)
                        findings.cases.append(
                            _case(settings, model, layout, context, draft_tokens, steps)
                        )
                for tokens in (_LEAST_STORED, max(max(settings.contexts) // 2, _LEAST_STORED)):
                    findings.memory.append(
                        Memory(
                            name_of(layout),
                            layout.kvp,
                            layout.interleave,
                            tokens,
                            ours.stored_tokens(tokens),
                            ours.kv_bytes,
                        )
                    )
    return findings


def _in_turns(
    settings: Settings, groups: dict[str, MeasuredGroup], context: int, draft_tokens: int
) -> dict[str, list[Step]]:
    made: dict[str, list[Step]] = {name: [] for name in groups}
    for _ in range(settings.rounds):
        for name, group in groups.items():
            made[name] += group.steps(settings.batch, context, draft_tokens, settings.steps)
    return made


def _case(
    settings: Settings,
    model: ModelConfig,
    layout: ParallelLayout,
    context: int,
    draft_tokens: int,
    steps: dict[str, list[Step]],
) -> Case:
    ours, plain, single = steps["ours"], steps.get("plain"), steps.get("single")
    every = ours + (plain or [])
    exchanged = {step.sent.sent_bytes[Collective.EXCHANGE] for step in every}
    exposed_ms = _exposed_ms(ours)
    return Case(
        layout=name_of(layout),
        ranks=layout.size,
        batch=settings.batch,
        context_tokens=context,
        draft_tokens=draft_tokens,
        step_ms=_step_ms(ours),
        step_ratio=None if single is None else _step_ms(ours) / _step_ms(single),
        exposed_exchange_ms=exposed_ms,
        exposed_other_ms=median(s.sent.total_exposed_s for s in ours) * 1000.0 - exposed_ms,
        no_overlap_step_ms=None if plain is None else _step_ms(plain),
        no_overlap_exposed_exchange_ms=None if plain is None else _exposed_ms(plain),
        exchange_bytes=tuple(sorted(exchanged)),
        formula_bytes=exchanged_bytes(model, layout, settings.batch, draft_tokens, _ELEMENT_BYTES),
        other_bytes=max(s.sent.total_bytes - s.sent.sent_bytes[Collective.EXCHANGE] for s in ours),
    )


def _step_ms(steps: Sequence[Step]) -> float:
    return median(step.step_s for step in steps) * 1000.0


def _exposed_ms(steps: Sequence[Step]) -> float:
    return median(step.sent.exposed_s[Collective.EXCHANGE] for step in steps) * 1000.0
