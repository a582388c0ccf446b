"""How much of a step is spent outside torch operations, that is in our own Python.

Exists because on small models and small batches this is what decides. Measured with torch.profiler
on the CPU: the step's time less the self times of all operations on the stepping thread. The
profiler's own work falls almost wholly outside operations, so the share that comes out is an upper
bound; the step's time without the profiler is reported beside it to show by how much.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from orchestrator.bench.messages import Profiled

_US = 1e-6


def profile_steps(step: Callable[[], object], steps: int) -> Profiled:
    """Time `steps` steps without the profiler, then as many with it."""
    began_s = time.perf_counter()
    for _ in range(steps):
        step()
    step_s = (time.perf_counter() - began_s) / steps
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()  # the first step under a profiler pays for its start
        began_s = time.perf_counter()
        with torch.profiler.record_function(_MEASURED):
            for _ in range(steps):
                step()
        profiled_s = (time.perf_counter() - began_s) / steps
    events = profiler.events()
    measured = next(event for event in events if event.name == _MEASURED)
    inside = [
        event
        for event in events
        if event.thread == measured.thread
        and event.time_range.start >= measured.time_range.start
        and event.time_range.end <= measured.time_range.end
        and event is not measured
        and _is_operation(event.name)
    ]
    torch_s = sum(event.self_cpu_time_total for event in inside) * _US / steps
    return Profiled(
        step_s=step_s,
        profiled_step_s=profiled_s,
        torch_s=torch_s,
        operations=sum(event.cpu_parent is measured for event in inside) / steps,
    )


_MEASURED = "tandem::measured"


def _is_operation(name: str) -> bool:
    """Operators have a namespace; compiled graphs are recorded under a phrase of inductor's."""
    return "::" in name or "CompiledFxGraph" in name
