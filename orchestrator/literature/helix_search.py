"""Helix's headline: what it gains over the best layout without it, by our model and search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.literature.check import Check, Section
from orchestrator.planner.candidates import decode_layouts, powers
from orchestrator.planner.pareto import frontier
from orchestrator.planner.phases import DecodePoints, Drafting, decode_points
from orchestrator.planner.workload import Workload
from workers.perf.arrays import Floats
from workers.perf.efficiency import IDEAL
from workers.perf.engine_times import PhaseModel
from workers.perf.hardware import known_hardware
from workers.perf.known_models import known_model
from workers.perf.layouts import Layout, Layouts
from workers.perf.model_spec import ModelSpec
from workers.perf.precision import precision_named

_GPUS = 64
_CONTEXT = 1e6
_SLOW_EXCHANGE_S = 8e-6
_LATENCY = (
    "our passes know peaks and an exchange latency of 2 µs only; the paper's simulator, which is "
    "not published, has more that does not shrink with KVP (see the rows at 8 µs)"
)

_OVERLAP = {
    "deepseek-r1": (
        "partial outputs are sent as TensorRT-LLM sends them, 512 latent elements a head in 16 "
        "bits; 128 elements in 4 bits would be a sixteenth of that"
    ),
    "llama-3.1-405b": (
        "sent once for a batch the partial outputs are nearly all latency, which parts pay again "
        "and cannot hide; the paper's figure 3 has every request pay its own without overlap"
    ),
}


@dataclass(frozen=True, slots=True)
class Gains:
    """Of Helix over the best other layout. `interactivity` is the ratio of the quickest steps;
    `batch` and `throughput` the largest ratios at equal latency; `without_overlap` the loss of
    tokens/s/user at equal tokens/s/GPU when HOP-B is off, the median along
    the frontier."""

    interactivity: float
    batch: float
    throughput: float
    without_overlap: float


def section() -> Section:
    """Both models at the default latency and at a longer one."""
    return Section(
        title="Helix: gains over the best layout without it",
        source="arXiv 2507.07120, section 3, figures 5 to 7",
        method=(
            "1 to 64 GB200 in one NVLink domain, FP4, 1 M tokens of context, decode alone. Without "
            "Helix: tensor, pipeline and attention data parallelism with expert parallelism, and "
            "KVP with experts on TPA ranks alone (Medha). The paper prints neither the points of "
            "its figures nor link speeds; all its values are relative and simulated."
        ),
        checks=tuple(_checks()),
    )


def _checks() -> Iterator[Check]:
    published = {"deepseek-r1": (1.5, 32.0, 0.01), "llama-3.1-405b": (1.13, 4.0, 0.12)}
    for name, (interactivity, batch, loss) in published.items():
        model = known_model(name)
        for latency_s in (None, _SLOW_EXCHANGE_S):
            gains = helix_gains(model, latency_s)
            at = "" if latency_s is None else f", {latency_s * 1e6:g} µs an exchange"
            yield Check(
                f"{name}: interactivity, x{at}",
                interactivity,
                gains.interactivity,
                0.25,
                _LATENCY,
                (0.7, 2.6),
            )
            yield Check(
                f"{name}: concurrent users at equal latency, x{at}",
                batch,
                gains.batch,
                0.25,
                "depends on where the quickest step of the other layouts lies; " + _LATENCY,
                (0.2, 2.6),
            )
            yield Check(
                f"{name}: share of tokens/s/user lost without HOP-B{at}",
                loss,
                gains.without_overlap,
                0.5,
                _OVERLAP[name],
                (0.0, 15.0),
            )


def helix_gains(model: ModelSpec, exchange_s: float | None = None) -> Gains:
    """Search with and without Helix.

    Args:
        model: to decode.
        exchange_s: latency of an exchange; that of the hardware's spec if None.
    """
    hardware = known_hardware("gb200")
    if exchange_s is not None:
        hardware = replace(hardware, scale_up_latency_s=exchange_s)
    phase = PhaseModel(model, hardware, precision_named("fp4"), IDEAL)
    every = list(decode_layouts(model, _GPUS, hardware.domain, _GPUS))
    helix = [one for one in every if one.kvp > 1 and one.pp == 1 and one.dp == 1]
    others = [one for one in every if _is_baseline(one)] + list(_medha(model))
    base = _points(phase, others)
    with_overlap = _points(phase, [one for one in helix if one.hopb])
    without = _points(phase, [one for one in helix if not one.hopb])
    batch, throughput = _at_equal_latency(base, with_overlap)
    return Gains(
        interactivity=float(np.min(base.step_s) / np.min(with_overlap.step_s)),
        batch=batch,
        throughput=throughput,
        without_overlap=_loss(with_overlap, without),
    )


def _is_baseline(layout: Layout) -> bool:
    tensor = layout.dp == 1 and layout.ep == 1
    experts = layout.tpa == 1 and layout.tpf == 1
    return layout.kvp == 1 and (tensor or experts)


def _medha(model: ModelSpec) -> Iterator[Layout]:
    """KVP whose feed-forward layers stay on the TPA ranks: the others hold copies of them."""
    for kvp in powers(_GPUS)[1:]:
        for tpa in powers(min(_GPUS // kvp, model.stack.kv_heads)):
            yield Layout(kvp=kvp, tpa=tpa, tpf=tpa)


def _points(phase: PhaseModel, layouts: list[Layout]) -> DecodePoints:
    long = Workload(
        isl=np.array([_CONTEXT]),
        weights=np.ones(1),
        isl_percentile=_CONTEXT,
        mean_osl=1.0,
        osl_scv=0.0,
        context=_CONTEXT,
        held=_CONTEXT,
        prefix_hit=0.0,
        description="1 M tokens of context",
    )
    points, _ = decode_points(phase, long, _GPUS, Drafting(), Layouts.of(layouts))
    return points


def _throughput(points: DecodePoints) -> Floats:
    """Tokens a second for each GPU, without the link."""
    return points.slots / (points.step_s * points.ranks)


def _at_equal_latency(base: DecodePoints, helix: DecodePoints) -> tuple[float, float]:
    """Largest ratios of batch and of throughput along the frontier of the baseline."""
    base_rate, helix_rate = _throughput(base), _throughput(helix)
    batch = throughput = 0.0
    for step_s in base.step_s[frontier(base.step_s, base_rate)]:
        allowed, other = helix.step_s <= step_s, base.step_s <= step_s
        if np.any(allowed):
            slots = float(np.max(helix.slots[allowed]) / np.max(base.slots[other]))
            rate = float(np.max(helix_rate[allowed]) / np.max(base_rate[other]))
            batch, throughput = max(batch, slots), max(throughput, rate)
    return batch, throughput


def _loss(with_overlap: DecodePoints, without: DecodePoints) -> float:
    """Median loss of interactivity along the frontier at equal throughput, between points of the
    other frontier by interpolation."""
    rate, plain_rate = _throughput(with_overlap), _throughput(without)
    kept, plain = frontier(with_overlap.step_s, rate), frontier(without.step_s, plain_rate)
    reached = rate[kept] <= np.max(plain_rate)
    step_s = np.interp(rate[kept][reached], plain_rate[plain], without.step_s[plain])
    loss = 1.0 - with_overlap.step_s[kept][reached] / step_s
    return float(np.median(loss))
