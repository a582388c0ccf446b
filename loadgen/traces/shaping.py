"""A trace made shorter, quicker, denser or thinner. Pure functions; what is drawn has a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loadgen.arrivals import poisson
from loadgen.errors import LoadError
from loadgen.traces.request import TraceRequest

# Hash ids of one copy of a trace lie so far from those of another.
_COPY_STRIDE = 1 << 32


@dataclass(frozen=True, slots=True)
class Cut:
    """Which requests stay: those within these bounds, both ends included."""

    from_s: float = 0.0
    to_s: float | None = None
    min_isl: int = 1
    max_isl: int | None = None
    min_osl: int = 1
    max_osl: int | None = None


def sped_up(requests: Sequence[TraceRequest], factor: float) -> list[TraceRequest]:
    """The same requests, `factor` times as fast."""
    return [replace(request, at_s=request.at_s / factor) for request in requests]


def at_rate(requests: Sequence[TraceRequest], rate_rps: float, seed: int) -> list[TraceRequest]:
    """The same requests in the same order, as a Poisson process of that rate."""
    times = poisson(rate_rps, seed)
    return at_times(requests, (0.0, *(next(times) for _ in requests[1:])))


def at_times(requests: Sequence[TraceRequest], times_s: Sequence[float]) -> list[TraceRequest]:
    """The same requests in the same order, at other moments."""
    return [replace(request, at_s=at_s) for request, at_s in zip(requests, times_s, strict=False)]


def scaled(requests: Sequence[TraceRequest], factor: float, seed: int) -> list[TraceRequest]:
    """`factor` times as many requests within the same time and with the same ups and downs.

    Below 1 requests are left out at random; above, they are repeated, each copy somewhere before
    its successor in the trace. A copy shares its prefixes with other copies of the same lap only:
    equal prompts would be answered from caches.
    """
    rng = random.Random(seed)
    out = []
    for place, request in enumerate(requests):
        following = requests[min(place + 1, len(requests) - 1)].at_s
        copies = int(factor) + (rng.random() < factor - int(factor))
        for copy in range(copies):
            at_s = request.at_s if copy == 0 else rng.uniform(request.at_s, following)
            out.append(
                replace(
                    request,
                    at_s=at_s,
                    hash_ids=tuple(name + copy * _COPY_STRIDE for name in request.hash_ids),
                    session=f"{request.session}/{copy}"
                    if request.session and copy
                    else request.session,
                )
            )
    out.sort(key=lambda one: one.at_s)
    return out


def cut(requests: Sequence[TraceRequest], bounds: Cut) -> list[TraceRequest]:
    """The requests within bounds, moved so that `from_s` becomes 0. Raises LoadError for none."""
    kept = [
        replace(request, at_s=request.at_s - bounds.from_s)
        for request in requests
        if bounds.from_s <= request.at_s
        and (bounds.to_s is None or request.at_s <= bounds.to_s)
        and bounds.min_isl <= request.prompt_tokens
        and (bounds.max_isl is None or request.prompt_tokens <= bounds.max_isl)
        and bounds.min_osl <= request.answer_tokens
        and (bounds.max_osl is None or request.answer_tokens <= bounds.max_osl)
    ]
    if not kept:
        raise LoadError(
            f"no request of {len(requests)} is left after cutting and filtering",
            "widen --from-s, --to-s, --min-isl, --max-isl, --min-osl or --max-osl",
        )
    return kept
