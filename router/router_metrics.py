"""What a router counts of its requests and of its own work, for `/metrics`."""

from __future__ import annotations

import time
from collections.abc import Iterable

from router.core.reasons import reason_name
from router.metrics import Counter, Histogram, gauge_lines
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
            "tandem_token_hold_seconds", "How long tokens waited for those that follow."
        )
        self.loop_delay = Histogram(
            "tandem_loop_delay_seconds", "How late the event loop's timers came."
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

    def text(self, status: RouterStatus, load: float, hold_s: float) -> str:
        """All of it in Prometheus' format."""
        lines: list[str] = []
        for metric in vars(self).values():
            lines.extend(metric.lines())
        lines.extend(_state_lines(status, load, hold_s))
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
        connected[worker.record.role] += worker.view is not None
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
