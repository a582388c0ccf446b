"""The figures of SPEED-Bench, as its code computes them (specdec_bench, metric `SpecBench`).

A step gives 1 + accepted tokens. The acceptance length of a request is the mean over the steps of
all its turns, that of a category the mean over its requests, and the average the mean over all
requests, not over categories. Timing: output tokens/s is all tokens over the time from the first
request to the last token; user tokens/s is (tokens - 1) / (last - first token), a mean over turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadgen.figures import conditional, failures, first_details, mean_length, percentiles
from loadgen.recording import INTERRUPTED, Record, Speculation
from loadgen.speedbench.rows import Question


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with the records of its turns."""

    question: Question
    turns: tuple[Record, ...]

    @property
    def whole(self) -> bool:
        """Whether every turn was answered well."""
        return len(self.turns) == len(self.question.turns) and all(one.good for one in self.turns)

    @property
    def speculation(self) -> Speculation:
        total = Speculation()
        for record in self.turns:
            if record.speculation is not None:
                total.add(record.speculation)
        return total


def answered(questions: Sequence[Question], records: Sequence[Record]) -> list[Answered]:
    """Records of a run, whose sessions are numbered as the questions are, by question."""
    turns: dict[int, list[Record]] = {}
    for record in records:
        turns.setdefault(record.session, []).append(record)
    return [
        Answered(questions[number], tuple(sorted(of_one, key=lambda one: one.turn)))
        for number, of_one in sorted(turns.items())
    ]


def acceptance_length(conditional_rates: Sequence[float]) -> float:
    """AL = 1 + the sum over i of the product of the first i conditional acceptance rates."""
    length, joint = 1.0, 1.0
    for rate in conditional_rates:
        joint *= rate
        length += joint
    return length


def projected_speedup(step_ar_ms: float, step_sd_ms: float, length: float) -> float:
    """Of speculation over decoding token by token: t_ar * AL / t_sd, from the times of a step."""
    return step_ar_ms * length / step_sd_ms


def document(
    questions: Sequence[Question],
    records: Sequence[Record],
    description: Mapping[str, object],
    baseline: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """The report; `baseline` is that of a run without drafts, for the speedup."""
    whole = [one for one in answered(questions, records) if one.whole]
    measured = [one for one in whole if one.speculation.steps]
    total = Speculation()
    for one in measured:
        total.add(one.speculation)
    good = [record for one in whole for record in one.turns]
    rates = conditional(total)
    lengths = {one.question.question_id: mean_length(one.speculation) for one in measured}
    ways = dict.fromkeys(record.measured for record in good if record.measured)
    report: dict[str, object] = {
        **description,
        "questions": len(questions),
        "answered": len(whole),
        "turns": len(good),
        "failed": failures(records),
        "first_errors": first_details(records),
        "unfinished": sum(record.reason == INTERRUPTED for record in records),
        "acceptance_measured": ", ".join(ways) or None,
        "acceptance_length": _mean(list(lengths.values())),
        "acceptance_length_from_rates": acceptance_length(rates) if rates else None,
        "acceptance_length_by_category": _by_category(measured),
        "conditional_acceptance": rates,
        "joint_acceptance": _joint(rates),
        "length_histogram": dict(sorted(total.lengths.items())),
        "request_acceptance_length": lengths,
        **_timing(good),
    }
    report["speedup"] = None if baseline is None else _speedup(report, baseline)
    return report


def _by_category(measured: Sequence[Answered]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[float]] = {}
    for one in measured:
        groups.setdefault(one.question.category, []).append(mean_length(one.speculation))
    return {
        name: {"length": sum(found) / len(found), "requests": len(found)}
        for name, found in sorted(groups.items())
    }


def _joint(rates: Sequence[float]) -> list[float]:
    out, joint = [], 1.0
    for rate in rates:
        joint *= rate
        out.append(joint)
    return out


def _timing(good: Sequence[Record]) -> dict[str, object]:
    if not good:
        return {"output_tokens": 0, "output_tokens_per_s": None, "user_tokens_per_s": None}
    tokens = sum(record.tokens for record in good)
    seconds = max(record.last_s for record in good) - min(record.sent_s for record in good)
    timed = [record for record in good if record.tokens > 1 and record.last_s > record.first_s]
    users = [(one.tokens - 1) / (one.last_s - one.first_s) for one in timed]
    steps_ms = [
        (one.last_s - one.first_s) / one.speculation.steps * 1e3
        for one in timed
        if one.speculation is not None and one.speculation.steps
    ]
    return {
        "output_tokens": tokens,
        "seconds": seconds,
        "output_tokens_per_s": tokens / seconds if seconds > 0.0 else None,
        "user_tokens_per_s": _mean(users),
        "step_ms": _mean(steps_ms),
        "ttft_ms": percentiles(record.ttft_ms for record in good),
        "itl_ms": percentiles(record.itl_ms for record in good),
    }


def _speedup(report: Mapping[str, object], baseline: Mapping[str, object]) -> dict[str, float]:
    """Measured, by tokens per second of a user and of all; and projected from steps."""
    out: dict[str, float] = {}
    for name in ("user_tokens_per_s", "output_tokens_per_s"):
        ours, theirs = report.get(name), baseline.get(name)
        if isinstance(ours, float) and isinstance(theirs, (int, float)) and theirs > 0.0:
            out[name.removesuffix("_tokens_per_s")] = ours / theirs
    step_ar, step_sd = baseline.get("step_ms"), report.get("step_ms")
    length = report.get("acceptance_length")
    if (
        isinstance(step_ar, (int, float))
        and isinstance(step_sd, float)
        and isinstance(length, float)
        and step_sd > 0.0
    ):
        out["projected"] = projected_speedup(step_ar, step_sd, length)
    return out


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
