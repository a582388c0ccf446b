"""What a router counts of its requests and of its own work, for `/metrics`."""

from __future__ import annotations

import time
from collections.abc import Iterable

from router.core.matching import MatchReport
from router.core.reasons import reason_name
from router.metrics import TIME_BUCKETS_S, Counter, Histogram, counter_lines, gauge_lines
from router.relay.pacing import PROMISED_HOLD_S
from router.requests import Finished
from router.status import RouterStatus


class RouterMetrics:
    """Filled by the dispatcher, the relay and the front ends; owned by their event loop."""

    def __init__(self) -> None:
        self.requests = Counter(
            "tandem_requests_total", "Requests that have ended, by reason.", "reason"
        )
        self.replays = Counter(
            "tandem_replays_total", "Requests answered by an answer made for an earlier one."
        )
        self.prompt_tokens = Counter("tandem_prompt_tokens_total", "Tokens of prompts.")
        self.cached_tokens = Counter(
            "tandem_cached_tokens_total", "Tokens of prompts that a cached prefix spared."
        )
        self.tokens = Counter("tandem_completion_tokens_total", "Tokens of answers.")
        self.ttft = Histogram("tandem_ttft_seconds", "From arrival to the first token.")
        self.itl = Histogram("tandem_itl_seconds", "Mean time between tokens, by request.")
        self.queued = Histogram("tandem_queue_seconds", "From arrival to a pair of workers.")
        self.taking = Histogram(
            "tandem_router_request_seconds",
            "The router's own time for a request: from its first look to the workers' commands.",
        )
        self.sending = Histogram(
            "tandem_router_token_seconds",
            "The router's own time for tokens: from the core to the client's connection.",
        )
        self.hold = Histogram(
            "tandem_token_hold_seconds",
            "How long tokens waited for those that follow.",
            sorted((*TIME_BUCKETS_S, PROMISED_HOLD_S)),
        )
        self.loop_delay = Histogram(
            "tandem_loop_delay_seconds", "How long what was ready waited for the event loop."
        )
        self._metrics: tuple[Counter | Histogram, ...] = (
            self.requests,
            self.replays,
            self.prompt_tokens,
            self.cached_tokens,
            self.tokens,
            self.ttft,
            self.itl,
            self.queued,
            self.taking,
            self.sending,
            self.hold,
            self.loop_delay,
        )

    def took(self, received_s: float | None, now_s: float) -> None:
        """A request's first commands have gone out."""
        if received_s is not None:
            self.taking.observe(now_s - received_s)

    def sent(self, since_s: float) -> None:
        """Tokens that came at `since_s` have gone out."""
        self.sending.observe(time.monotonic() - since_s)

    def finished(self, finished: Finished | None) -> None:
        """A request has ended."""
        if finished is None:
            return
        report = finished.report
        self.requests.add(1, reason_name(finished.reason))
        self.prompt_tokens.add(finished.prompt_tokens)
        self.cached_tokens.add(report.cached_tokens)
        self.tokens.add(finished.completion_tokens)
        self.queued.observe(report.queue_ms / 1e3)
        if finished.completion_tokens:
            self.ttft.observe(report.ttft_ms / 1e3)
        if finished.completion_tokens > 1:
            self.itl.observe(report.mean_itl_ms / 1e3)

    def text(self, status: RouterStatus, match: MatchReport, load: float, hold_s: float) -> str:
        """All of it in Prometheus' format; `match` is of the router's whole life."""
        lines: list[str] = []
        for metric in self._metrics:
            lines.extend(metric.lines())
        lines.extend(_state_lines(status, load, hold_s))
        lines.extend(_match_lines(status.matching, match))
        return "\n".join(lines) + "\n"


def _state_lines(status: RouterStatus, load: float, hold_s: float) -> Iterable[str]:
    plain: tuple[tuple[str, str, float], ...] = (
        ("tandem_queue_requests", "Requests that wait for workers.", status.queued_requests),
        ("tandem_running_requests", "Requests that run.", status.running_requests),
        ("tandem_router_load", "Processor time over time, 1 for none left.", load),
        ("tandem_token_hold_limit_seconds", "How long tokens may wait at present.", hold_s),
    )
    for name, text, value in plain:
        yield from gauge_lines(name, text, {(): value})
    connected = {"prefill": 0, "decode": 0}
    for worker in status.workers:
        if worker.view is not None:
            connected[worker.view.role] += 1
    yield from gauge_lines(
        "tandem_workers",
        "Workers with a session.",
        {(("role", role),): count for role, count in connected.items()},
    )
    views = [worker for worker in status.workers if worker.view is not None]
    for name, text, values in (
        (
            "tandem_worker_running_requests",
            "Requests that this router has on a worker.",
            {worker.record.worker_id: len(worker.view.holds) for worker in views if worker.view},
        ),
        (
            "tandem_worker_free_tokens",
            "Tokens of KV that a worker can still take.",
            {worker.record.worker_id: worker.view.free_tokens for worker in views if worker.view},
        ),
    ):
        yield from gauge_lines(
            name, text, {(("worker", worker_id),): value for worker_id, value in values.items()}
        )


def _match_lines(recent: MatchReport, whole: MatchReport) -> Iterable[str]:
    """Shares of the last minute, and the integrals that any other time follows from."""
    if recent.matched_ratio is not None:
        yield from gauge_lines(
            "tandem_matched_ratio",
            "The smaller busy share of prefill and decode over the larger one.",
            {(): recent.matched_ratio},
        )
    idle = {"prefill": recent.prefill_idle_share, "decode": recent.decode_idle_share}
    yield from gauge_lines(
        "tandem_idle_share",
        "Of the prefill workers' time and of the decode workers' slots.",
        {(("role", role),): share for role, share in idle.items()},
    )
    for name, text, values in (
        (
            "tandem_busy_seconds_total",
            "Prefill workers with prompts, and requests on decode workers, times seconds.",
            {"prefill": whole.prefill_busy_s, "decode": whole.decode_busy_s},
        ),
        (
            "tandem_capacity_seconds_total",
            "Prefill workers, and slots of decode workers, times seconds.",
            {"prefill": whole.prefill_capacity_s, "decode": whole.decode_capacity_s},
        ),
    ):
        yield from counter_lines(
            name, text, {(("role", role),): seconds for role, seconds in values.items()}
        )
    yield from counter_lines(
        "tandem_blocked_seconds_total",
        "What the first request of the queue waited for.",
        {(("resource", resource),): seconds for resource, seconds in whole.waited_s.items()},
    )
