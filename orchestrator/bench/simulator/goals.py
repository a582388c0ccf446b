"""The targets of the simulator, and its document."""

from __future__ import annotations

from dataclasses import asdict

from orchestrator.bench.simulator.run import Findings
from orchestrator.bench.targets import Goal, Target, judged, rows

# A run that loads a cluster for less than this many seconds says little of one under load.
_LEAST_LIVE = 100
_LEAST_REQUESTS = 5_000
_CLOSE = {"p50": 5.0, "p99": 15.0}


def judge(found: Findings) -> list[Target]:
    """A row for each goal of the issue."""
    targets = []
    for speed, core_us in zip(found.speeds, found.core_us, strict=True):
        few = None if speed.requests >= _LEAST_REQUESTS else f"only {speed.requests} requests"
        goal = Goal(f"simulated requests per second, {speed.gpus:,} GPUs", 10_000.0, "requests/s")
        bound = f"the router's core alone takes {core_us:.0f} us of {speed.us_per_request:.0f} us"
        one = judged(goal, speed.requests_per_s, unfit=few)
        targets.append(one if one.met else Target(goal, one.value, one.met, few or bound))
    small = None if found.longer.requests >= _LEAST_REQUESTS else "too few requests to tell"
    targets.append(
        judged(
            Goal("a million requests on 10,000 GPUs", 120.0, "s", "<"),
            found.million_s,
            unfit=small,
        )
    )
    targets.append(
        judged(
            Goal("cost of a request on 10,000 GPUs over that on 10", 2.0, "ratio", "<"),
            found.growth,
            unfit=small,
        )
    )
    for name, title in (("ttft_ms", "TTFT"), ("itl_ms", "ITL")):
        for percentile, bound_percent in _CLOSE.items():
            goal = Goal(f"{title} {percentile}, simulated against live", bound_percent, "%", "<=")
            compared = found.comparison
            if compared is None:
                targets.append(judged(goal, None, "live requests were not asked for"))
                continue
            enough = compared.requests >= _LEAST_LIVE
            targets.append(
                judged(
                    goal,
                    compared.error(name, percentile),
                    unfit=None if enough else f"only {compared.requests} requests",
                )
            )
    return targets


def document(
    found: Findings, targets: list[Target], machine: dict[str, object], seconds: float
) -> dict[str, object]:
    """What `--json` prints."""
    return {
        "bench": "simulator",
        "seconds": round(seconds, 1),
        "speeds": [
            {
                **asdict(speed),
                "requests_per_s": speed.requests_per_s,
                "us_per_request": speed.us_per_request,
                "core_us_per_request": core_us,
            }
            for speed, core_us in zip(found.speeds, found.core_us, strict=True)
        ],
        "longer": {**asdict(found.longer), "us_per_request": found.longer.us_per_request},
        "us_of_one_more_request": found.us_of_one_more,
        "million": None if found.million is None else asdict(found.million),
        "live": None if found.comparison is None else asdict(found.comparison),
        "targets": rows(targets),
        "machine": machine,
    }
