"""The report of a run, as one JSON document; names as in `tandem simulate --json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from loadgen import figures
from loadgen.figures import Targets
from loadgen.recording import INTERRUPTED, Progress, Record, Recorder
from loadgen.watching import ClusterSample

# A client that sends later than this, or than so much of TTFT, is told about.
_LATE_MS = 10.0
_LATE_SHARE = 0.05
_LOOP_DELAY_MS = 20.0
# More than this between our count of prompt tokens and the endpoint's is told about.
_TEMPLATE_TOKENS = 40.0
_MISCOUNTED_SHARE = 0.05

Document = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Moment:
    """One row of the timeline."""

    progress: Progress
    cluster: ClusterSample | None

    def row(self) -> dict[str, object]:
        seen = asdict(self.cluster) if self.cluster is not None else {}
        return {**asdict(self.progress), **seen}


@dataclass(slots=True)
class Run:
    """What a run leaves behind.

    Attributes:
        load: what was asked for, for people.
        prompts: what prompts were made of.
        gpus: that served, when known.
        truncated: prompts that had to be shortened to fit the model.
        inexact: prompts for which no text of the wanted count was found.
        began: by the calendar, as ISO 8601 has it; the timeline is in seconds of the run.
    """

    recorder: Recorder
    targets: Targets
    target: Document
    load: Document
    prompts: str
    gpus: int | None = None
    interrupted: bool = False
    truncated: int = 0
    inexact: int = 0
    timeline: list[Moment] = field(default_factory=list)
    loop_delays_ms: Sequence[float] = ()
    began: str = ""

    def document(self) -> dict[str, object]:
        """Everything, units in the names."""
        records = self.recorder.records
        judged = [record for record in records if record.reason != INTERRUPTED]
        finished = [record for record in judged if record.good]
        seconds = _seconds(records)
        good = sum(self.targets.met(record) for record in finished)
        tokens = sum(record.tokens for record in records)
        prompt_tokens = sum(record.prompt_tokens for record in finished)
        cached = [record.cached_tokens for record in finished if record.cached_tokens is not None]
        return {
            "target": dict(self.target),
            "load": dict(self.load),
            "began": self.began,
            "prompts": self.prompts,
            "warnings": self._warnings(finished),
            "interrupted": self.interrupted,
            "requests": len(records),
            "finished": len(finished),
            "failed": figures.failures(records),
            "first_errors": figures.first_details(records),
            "unfinished": len(records) - len(judged),
            "seconds": seconds,
            "ttft_ms": figures.percentiles(record.ttft_ms for record in finished),
            "itl_ms": figures.percentiles(record.itl_ms for record in finished),
            "e2e_ms": figures.percentiles(record.e2e_ms for record in finished),
            "gap_ms": self.recorder.gaps.percentiles_ms(figures.PERCENTILES),
            "requests_per_s": _per(len(finished), seconds),
            "tokens_per_s": _per(tokens, seconds),
            "prompt_tokens_per_s": _per(prompt_tokens, seconds),
            "gpus": self.gpus,
            "tokens_per_s_gpu": self._per_gpu(_per(tokens, seconds)),
            "targets": asdict(self.targets),
            "goodput_rps": _per(good, seconds),
            "goodput_rps_gpu": self._per_gpu(_per(good, seconds)),
            "goodput_share": _per(good, len(judged)),
            "classes": self._classes(judged),
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "prefix_hit_share": _per(sum(cached), prompt_tokens) if cached else None,
            "acceptance": figures.acceptance(finished),
            "client": {
                "late_ms": figures.percentiles(record.late_ms for record in records),
                "loop_delay_ms": figures.percentiles(self.loop_delays_ms),
                "most_open": self.recorder.most_open,
            },
            "distributions": {
                "ttft_ms": figures.quantiles(record.ttft_ms for record in finished),
                "itl_ms": figures.quantiles(record.itl_ms for record in finished),
                "e2e_ms": figures.quantiles(record.e2e_ms for record in finished),
            },
            "timeline": [moment.row() for moment in self.timeline],
            "latencies_over_time": figures.over_time(finished),
        }

    def _per_gpu(self, rate: float) -> float | None:
        return None if self.gpus is None else rate / self.gpus

    def _classes(self, judged: Sequence[Record]) -> list[dict[str, object]]:
        names = dict.fromkeys(record.class_name for record in judged)
        rows: list[dict[str, object]] = []
        for name in names:
            mine = [record for record in judged if record.class_name == name]
            good = sum(record.good and self.targets.met(record) for record in mine)
            rows.append({"name": name, "requests": len(mine), "good": good})
        return rows

    def _warnings(self, finished: Sequence[Record]) -> list[str]:
        """What a reader must know before believing a figure."""
        told = []
        if self.prompts == "random tokens":
            told.append(
                "prompts were random tokens, which make speculation look 23 % quicker than it is "
                "on text (SPEED-Bench) and leave experts unused"
            )
        late_ms = figures.percentile((one.late_ms for one in self.recorder.records), 99) or 0.0
        ttft_ms = figures.percentile((one.ttft_ms for one in finished), 50) or 0.0
        if late_ms > max(_LATE_MS, _LATE_SHARE * ttft_ms):
            told.append(
                f"the client was late, by {late_ms:.0f} ms at p99; latencies count from the "
                "intended moment, so part of them is the client's"
            )
        delay_ms = figures.percentile(self.loop_delays_ms, 99) or 0.0
        if delay_ms > _LOOP_DELAY_MS:
            told.append(
                f"the client's event loop was {delay_ms:.0f} ms late (p99): it had no time "
                "left, and what it measured of others is that much too long"
            )
        told += _miscounted(finished)
        if self.truncated:
            told.append(f"{self.truncated} prompts were shortened to fit the model's length")
        if self.inexact:
            told.append(
                f"{self.inexact} prompts have some tokens more or less than wanted, since no text "
                "with that count was found; over --api completions counts are exact"
            )
        if self.interrupted:
            told.append("the run was stopped before its end")
        return told


def _miscounted(finished: Sequence[Record]) -> list[str]:
    """Prompts that have other lengths at the endpoint than here; chat templates are allowed for."""
    both = [one for one in finished if one.made_tokens and one.counted_tokens is not None]
    if not both:
        return []
    made = sum(one.made_tokens for one in both) / len(both)
    counted = sum(one.counted_tokens or 0 for one in both) / len(both)
    if abs(counted - made) <= _TEMPLATE_TOKENS + _MISCOUNTED_SHARE * made:
        return []
    return [
        f"the target counted {counted:.0f} prompt tokens a request where {made:.0f} were meant: "
        "--model names another tokenizer than the target's, or its chat template is a long one"
    ]


def _seconds(records: Sequence[Record]) -> float:
    """From the first intended moment to the last thing that came."""
    ends = [record.ended_s for record in records if record.ended]
    if not ends:
        return 0.0
    return max(ends) - min(record.intended_s for record in records)


def _per(amount: float, whole: float) -> float:
    return amount / whole if whole > 0.0 else 0.0
