"""What has come and what has ended, as sums since the router began: what an autoscaler asks for.

Whoever wants a rate takes the difference of two answers. Lengths of prompts are counted by half
octaves, which gives a mean, a variance and a percentile however many requests there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from protos.tandem.v1 import admin_pb2
from router.core.policy import Policy
from router.core.reasons import WELL
from router.core.request import Request, State
from router.requests import Finished

LENGTH_BINS = 44  # up to 2^22 tokens


def length_bin(tokens: int) -> int:
    """The half octave of a length."""
    return min(int(2.0 * math.log2(max(tokens, 1))), LENGTH_BINS - 1)


def bin_tokens(index: int) -> float:
    """The length that stands for a bin: its geometric middle."""
    return math.exp2((index + 0.5) / 2.0)


@dataclass(slots=True)
class TrafficCounts:
    """Sums of one router; owned by its dispatcher. Means of latencies follow from the sums."""

    arrived: int = 0
    prompt_tokens: int = 0
    prompt_bins: list[int] = field(default_factory=lambda: [0] * LENGTH_BINS)
    finished: int = 0
    answer_tokens: int = 0
    answer_squares: float = 0.0
    ended_prompt_tokens: int = 0
    cached_tokens: int = 0
    failed: int = 0
    met_ttft: int = 0
    met_itl: int = 0
    met_both: int = 0
    ttft_s: float = 0.0
    itl_s: float = 0.0

    def came(self, prompt_tokens: int) -> None:
        """A request was admitted to the queue."""
        self.arrived += 1
        self.prompt_tokens += prompt_tokens
        self.prompt_bins[length_bin(prompt_tokens)] += 1

    def ended(self, finished: Finished, class_rank: int, policy: Policy) -> None:
        """A request has ended."""
        if finished.reason not in WELL:
            self.failed += 1
            return
        target, report = policy.of_class(class_rank), finished.report
        tokens = finished.completion_tokens
        self.finished += 1
        self.answer_tokens += tokens
        self.answer_squares += float(tokens) * tokens
        self.ended_prompt_tokens += finished.prompt_tokens
        self.cached_tokens += report.cached_tokens
        met_ttft = report.ttft_ms <= target.ttft_s * 1e3
        met_itl = report.mean_itl_ms <= target.itl_s * 1e3
        self.met_ttft += met_ttft
        self.met_itl += met_itl
        self.met_both += met_ttft and met_itl
        self.ttft_s += report.ttft_ms / 1e3
        self.itl_s += report.mean_itl_ms / 1e3

    def message(self, requests: Iterable[Request]) -> admin_pb2.Traffic:
        """For `GetStatus`; `requests` are those that have not ended."""
        made = [one.tokens.delivered for one in requests if one.state == State.DECODING]
        return admin_pb2.Traffic(
            arrived=self.arrived,
            prompt_tokens=self.prompt_tokens,
            prompt_bins=self.prompt_bins,
            finished=self.finished,
            answer_tokens=self.answer_tokens,
            answer_squares=self.answer_squares,
            ended_prompt_tokens=self.ended_prompt_tokens,
            cached_tokens=self.cached_tokens,
            failed=self.failed,
            met_ttft=self.met_ttft,
            met_itl=self.met_itl,
            met_both=self.met_both,
            ttft_s=self.ttft_s,
            itl_s=self.itl_s,
            running=len(made),
            running_tokens=sum(made),
        )
