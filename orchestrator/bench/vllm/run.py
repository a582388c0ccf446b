"""The rounds of the bench, and its targets.

Each round loads vLLM's own server and the router with the same requests, one after the other and
in turns first; ratios and differences are formed within a round, and their medians count. Single
rounds vary by more than what is to be shown, so a goal counts as reached or missed only where the
whole interval of the median is on one side of it.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import aiohttp

from orchestrator.bench.machine import describe_machine
from orchestrator.bench.rounds import median_interval
from orchestrator.bench.targets import Goal, Target, judged, rows
from orchestrator.bench.vllm.client import Load, Reading, run_load
from orchestrator.bench.vllm.rig import NAME, Rig, running_rig
from orchestrator.bench.vllm.settings import VllmBenchSettings
from orchestrator.errors import UserError

_WARM_SEED = 0


@dataclass(frozen=True, slots=True)
class Round:
    """The same load on both, and one request at a time on both."""

    bare: Reading
    tandem: Reading
    bare_alone: Reading
    tandem_alone: Reading


@dataclass(frozen=True, slots=True)
class Findings:
    rounds: tuple[Round, ...]
    vllm: str

    def median(self, figure: Callable[[Round], float]) -> float:
        return statistics.median(figure(one) for one in self.rounds)

    def judged(self, goal: Goal, figure: Callable[[Round], float]) -> Target:
        """A goal for the median; open while the rounds do not tell on which side of it that is."""
        between = median_interval([figure(one) for one in self.rounds])
        value = self.median(figure)
        if between is None:
            return judged(goal, value, f"{len(self.rounds)} rounds are too few to tell")
        told = f"with 95 % confidence between {between[0]:.3g} and {between[1]:.3g}"
        unfit = None if len({goal.reached_by(one) for one in between}) == 1 else told
        return replace(judged(goal, value, unfit=unfit), why=told)


def run_vllm_bench(settings: VllmBenchSettings, report: Callable[[str], None]) -> Findings:
    """Run every round. Raises UserError for a server that does not start or answer."""
    report("starting vLLM twice: its own server, and a Tandem worker")
    with running_rig(settings) as rig:
        try:
            return asyncio.run(_run(settings, rig, report))
        except aiohttp.ClientError as error:
            raise UserError(f"a request failed: {error}") from error


async def _run(settings: VllmBenchSettings, rig: Rig, report: Callable[[str], None]) -> Findings:
    full = Load(
        settings.requests, settings.concurrency, settings.prompt_tokens, settings.output_tokens
    )
    alone = Load(max(2, settings.requests // 8), 1, settings.prompt_tokens, settings.output_tokens)
    for url in (rig.bare, rig.tandem):
        await run_load(url, NAME, rig.vocab_size, alone, _WARM_SEED)
    rounds = []
    for number in range(1, settings.rounds + 1):
        report(f"round {number} of {settings.rounds}")
        readings: dict[tuple[str, Load], Reading] = {}
        urls = (rig.bare, rig.tandem) if number % 2 else (rig.tandem, rig.bare)
        for load in (full, alone):
            for url in urls:
                # Other prompts in each round: nothing of them is cached.
                seed = 2 * number + (load is full)
                readings[url, load] = await run_load(url, NAME, rig.vocab_size, load, seed)
        rounds.append(
            Round(
                readings[rig.bare, full],
                readings[rig.tandem, full],
                readings[rig.bare, alone],
                readings[rig.tandem, alone],
            )
        )
    return Findings(tuple(rounds), rig.fingerprint.split("-")[1])


def judge(found: Findings) -> list[Target]:
    """One row for each target of vLLM as an engine."""
    return [
        found.judged(
            Goal("throughput over bare vLLM", 0.97, "ratio", ">="),
            lambda one: one.tandem.tokens_per_s / one.bare.tokens_per_s,
        ),
        found.judged(
            Goal("added ITL p50, one request at a time", 1.0, "ms", "<"),
            lambda one: one.tandem_alone.itl_ms - one.bare_alone.itl_ms,
        ),
        found.judged(
            Goal("added ITL p50, full load", 1.0, "ms", "<"),
            lambda one: one.tandem.itl_ms - one.bare.itl_ms,
        ),
    ]


def document(
    settings: VllmBenchSettings, found: Findings, targets: Sequence[Target], seconds: float
) -> dict[str, object]:
    """Everything, as `--json` prints it."""
    return {
        "bench": "router",
        "engine": "vllm",
        "seconds": round(seconds, 1),
        "settings": {
            "rounds": settings.rounds,
            "requests": settings.requests,
            "concurrency": settings.concurrency,
            "prompt_tokens": settings.prompt_tokens,
            "output_tokens": settings.output_tokens,
            "threads": settings.threads,
            "args": list(settings.args),
        },
        "added_ttft_ms": {
            "one request at a time": round(
                found.median(lambda one: one.tandem_alone.ttft_ms - one.bare_alone.ttft_ms), 3
            ),
            "full load": round(found.median(lambda one: one.tandem.ttft_ms - one.bare.ttft_ms), 3),
        },
        "rounds": [asdict(one) for one in found.rounds],
        "targets": rows(targets),
        "machine": describe_machine({"vllm": found.vllm}),
    }


def lines(found: Findings, targets: Sequence[Target]) -> list[str]:
    """The same for people."""
    told = []
    for who, under in (
        ("full load, vLLM's own server", [one.bare for one in found.rounds]),
        ("full load, through Tandem", [one.tandem for one in found.rounds]),
        ("one at a time, vLLM's own server", [one.bare_alone for one in found.rounds]),
        ("one at a time, through Tandem", [one.tandem_alone for one in found.rounds]),
    ):
        told.append(
            f"{who:<34}"
            f"{statistics.median(one.tokens_per_s for one in under):9.0f} tokens/s  "
            f"TTFT {statistics.median(one.ttft_ms for one in under):7.1f} ms  "
            f"ITL {statistics.median(one.itl_ms for one in under):6.2f} ms"
        )
    for target in targets:
        verdict = {True: "met", False: "missed", None: "not judged"}[target.met]
        value = "-" if target.value is None else f"{target.value:.2f}"
        why = "" if target.why is None else f" ({target.why})"
        told.append(
            f"{verdict:<11}{target.goal.name}: {value} {target.goal.unit}, {target.goal}{why}"
        )
    return told
