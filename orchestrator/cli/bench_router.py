"""`tandem bench router`: what a router costs between simulated workers and a load client."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from orchestrator.cli import bench_router_flags as flags
from orchestrator.cli.terminal import print_json
from orchestrator.errors import UserError

Progress = Callable[[], AbstractContextManager[Callable[[str], None]]]


def router_command(progress: Progress) -> Callable[..., None]:
    """The command; `progress` shows what is being measured."""

    def router(
        model: flags.Model = None,
        routers: flags.Routers = 1,
        isl: flags.Isl = 64,
        osl: flags.Osl = 64,
        step_ms: flags.StepMs = 5.0,
        concurrency: flags.Concurrency = 512,
        rps: flags.Rps = 500.0,
        seconds: flags.Seconds = 5.0,
        open_requests: flags.OpenRequests = 10_000,
        memory_requests: flags.MemoryRequests = 100_000,
        quick: flags.Quick = False,
        engine: flags.Engine = "simulated",
        vllm_python: flags.VllmPython = Path(".venv-vllm/bin/python"),
        as_json: flags.AsJson = False,
    ) -> None:
        """Real router processes between simulated workers and a load client; with --engine vllm
        one with a vLLM worker, and vLLM's own server, in turns."""
        if engine == "vllm":
            _beside_vllm(progress, model, vllm_python, isl, osl, quick, as_json)
            return
        if engine != "simulated":
            raise UserError(f"--engine {engine}: unknown", "set it to simulated or vllm")
        from orchestrator.bench.router import settings as given
        from orchestrator.bench.router.goals import judge
        from orchestrator.bench.router.results import document, lines
        from orchestrator.bench.router.run import run_router_bench
        from orchestrator.spec import load_spec

        settings = given.RouterBenchSettings(
            model=Path(load_spec().model.path) if model is None else model,
            routers=routers,
            prompt_tokens=isl,
            output_tokens=osl,
            step_ms=step_ms,
            concurrency=concurrency,
            rate_rps=rps,
            measure_s=seconds,
            open_requests=open_requests,
            memory_requests=memory_requests,
        )
        if quick:
            settings = given.quick(settings)
        began_s = time.monotonic()
        with progress() as report:
            found = run_router_bench(settings, report)
        targets = judge(settings, found)
        if as_json:
            print_json(document(settings, found, targets, time.monotonic() - began_s))
            return
        for line in lines(found, targets):
            print(line)

    return router


def _beside_vllm(
    progress: Progress,
    model: Path | None,
    python: Path,
    isl: int,
    osl: int,
    quick: bool,
    as_json: bool,
) -> None:
    from orchestrator.bench.vllm.run import document, judge, lines, run_vllm_bench
    from orchestrator.bench.vllm.settings import VllmBenchSettings
    from orchestrator.spec import load_spec

    if not python.exists():
        raise UserError(f"--vllm-python {python} is not there", "`make vllm-env` builds one")
    settings = VllmBenchSettings(
        # Not resolved: a virtual environment is told by the name that its Python is called by.
        python=python.absolute(),
        tokenizer_from=Path(load_spec().model.path) if model is None else model,
        prompt_tokens=isl,
        output_tokens=osl,
    )
    if quick:
        settings = replace(settings, rounds=2, requests=16, concurrency=8)
    began_s = time.monotonic()
    with progress() as report:
        found = run_vllm_bench(settings, report)
    targets = judge(found)
    if as_json:
        print_json(document(settings, found, targets, time.monotonic() - began_s))
        return
    for line in lines(found, targets):
        print(line)
