"""The router bench as one JSON document, and as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version

from orchestrator.bench.machine import describe_machine
from orchestrator.bench.router.run import Findings, Phase
from orchestrator.bench.router.settings import RouterBenchSettings
from orchestrator.bench.targets import Target, rows

_MIB = 2**20


def document(
    settings: RouterBenchSettings, found: Findings, targets: Sequence[Target], seconds: float
) -> dict[str, object]:
    """Everything, as `--json` prints it."""
    memory = found.memory
    return {
        "bench": "router",
        "seconds": round(seconds, 1),
        "settings": {
            "routers": settings.routers,
            "prompt_tokens": settings.prompt_tokens,
            "output_tokens": settings.output_tokens,
            "step_ms": settings.step_ms,
            "concurrency": settings.concurrency,
            "routers_have_cores_of_their_own": found.own_cores,
        },
        "phases": {name: _phase(phase) for name, phase in _named(found).items()},
        "memory": {
            "idle_mib": round(memory.idle_bytes / _MIB, 1),
            "mib_per_10k_open_requests": round(memory.per_10k_open_bytes / _MIB, 1),
            "growth_mib_per_million_requests": round(memory.growth_per_million_bytes / _MIB, 2),
            "requests": memory.requests,
            "requests_between_readings": memory.requests_between,
        },
        "targets": rows(targets),
        "machine": describe_machine(
            {name: version(name) for name in ("grpcio", "protobuf", "uvloop", "aiohttp")}
        ),
    }


def lines(found: Findings, targets: Sequence[Target]) -> Iterator[str]:
    """The same for people."""
    for name, phase in _named(found).items():
        p50, _, p99 = phase.added_ms
        yield (
            f"{name:<14}{phase.requests_per_s:8.0f} requests/s {phase.tokens_per_s:9.0f} tokens/s"
            f"  {phase.router_cores:5.2f} cores {phase.cpu_ms_per_request:7.2f} ms CPU/request"
            f"  added p50 {_ms(p50)} p99 {_ms(p99)}  others {phase.others_cores:.2f} cores"
        )
    memory = found.memory
    yield (
        f"memory        {memory.idle_bytes / _MIB:.0f} MiB idle, "
        f"{memory.per_10k_open_bytes / _MIB:.0f} MiB for 10,000 open requests, "
        f"{memory.growth_per_million_bytes / _MIB:.1f} MiB growth in a million requests "
        f"(from {memory.requests_between})"
    )
    for target in targets:
        verdict = {True: "met", False: "missed", None: "not judged"}[target.met]
        value = "-" if target.value is None else f"{target.value:.2f}"
        why = f" ({target.why})" if target.why else ""
        yield f"{verdict:<11}{target.goal.name}: {value} {target.goal.unit}, {target.goal}{why}"


def _named(found: Findings) -> dict[str, Phase]:
    return {
        "low load": found.low,
        "saturation": found.saturation,
        "long answers": found.long_answers,
        "80 %": found.loaded,
        "latency": found.latency,
    }


def _phase(phase: Phase) -> dict[str, object]:
    sample = phase.sample
    return {
        "requests_per_s": round(phase.requests_per_s, 1),
        "tokens_per_s": round(phase.tokens_per_s),
        "router_cores": round(phase.router_cores, 3),
        "tokens_per_router_core_s": round(phase.tokens_per_core_s),
        "router_cpu_ms_per_request": round(phase.cpu_ms_per_request, 3),
        "messages_per_request": round(sample.messages / max(1, sample.finished), 1),
        "requests_per_router_core_s": round(phase.requests_per_core_s, 1),
        "longest_hold_ms": round(phase.longest_hold_ms, 3),
        "added_ms": [_rounded(value) for value in phase.added_ms],
        **{name: [_rounded(v) for v in values] for name, values in phase.times_ms.items()},
        "client_ttft_ms": [_rounded(value) for value in sample.ttft_ms],
        "worker_cores": round(phase.worker_cores, 3),
        "client_cores": round(sample.client_cpu_s / sample.window_s, 3),
        "others_cores": round(phase.others_cores, 3),
        "failed": sample.failed,
        "checked": sample.checked,
        "wrong": sample.wrong,
        "first_error": sample.first_error,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _ms(value: float | None) -> str:
    return "     - ms" if value is None else f"{value:6.2f} ms"
