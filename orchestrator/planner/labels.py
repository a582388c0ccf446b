"""Which points of a frontier are written on in a picture: few, and apart from each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.planner.plan import FrontierPoint, Plan

_MOST = 5
# Share of the width, logarithmic, that two labelled points are apart at least.
_APART = 0.14


@dataclass(frozen=True, slots=True)
class Label:
    """What is written at (tokens/s/user, tokens/s/GPU)."""

    user: float
    gpu: float
    text: str


def labels(plan: Plan) -> list[Label]:
    """Points of the frontier from left to right, each with its ratio and layouts; not those that
    are near the chosen one, which `chosen_label` is for."""
    drawn = [point for point in plan.frontier if point.tokens_per_s_user > 0.0]
    if not drawn:
        return []
    places = [math.log(point.tokens_per_s_user) for point in drawn]
    width = max(places[-1] - places[0], 1e-9)
    taken: list[float] = []
    if plan.chosen is not None and plan.chosen.tokens_per_s_user > 0.0:
        taken.append(math.log(plan.chosen.tokens_per_s_user))
    found: list[Label] = []
    for point, place in zip(drawn, places, strict=True):
        if len(found) < _MOST and all(abs(place - other) > _APART * width for other in taken):
            taken.append(place)
            found.append(_label(point))
    return found


def chosen_label(plan: Plan) -> Label | None:
    """That of the best point for the targets."""
    chosen = plan.chosen
    if chosen is None or min(chosen.tokens_per_s_user, chosen.tokens_per_s_gpu) <= 0.0:
        return None
    prefill, decode = chosen.prefill, chosen.decode
    return Label(
        chosen.tokens_per_s_user,
        chosen.tokens_per_s_gpu,
        f"chosen: {prefill.count} x ({prefill.layout}) + {decode.count} x ({decode.layout}), "
        f"ctx:gen {chosen.gpu_ratio:.2f}",
    )


def _label(point: FrontierPoint) -> Label:
    return Label(
        point.tokens_per_s_user,
        point.tokens_per_s_gpu,
        f"{point.prefill} + {point.decode}, ctx:gen {point.gpu_ratio:.2f}",
    )
