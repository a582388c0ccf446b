"""What a simulated worker says to the router: the events of a real worker's session.

Said less often than live, where the core decides the same without it: of an answer the first token
and then all others together, when it ends or its worker dies; credits as of an empty worker, from
which the router takes off what it sent; and how quickly it works when requests come and go, but
not what waits. `docs/simulator.md` has the reasons.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from orchestrator.simulator.cluster import WorkerKind
from orchestrator.simulator.jobs import Job
from orchestrator.simulator.prefixes import TRACE_BLOCK_TOKENS
from protos.tandem.v1 import common_pb2
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from protos.tandem.v1.inference_pb2 import HandoffReport
from router.core.events import (
    CacheChanged,
    CreditsChanged,
    Drained,
    Ended,
    Event,
    Flipped,
    LoadChanged,
    PrefillDone,
    Reserved,
    Role,
    StateArrived,
    Stayed,
    TokensArrived,
)
from router.core.reasons import Reason
from workers.engine.load import LoadMeter

# A router is told how quickly a worker works at most this often, as by the native engine; after
# each change at first, then after so many: what it makes of that is an average in any case. What
# waits at a worker it is not told: it has sent it.
_NEWS_S = 0.1
_LEARNING_NEWS = 16
_CHANGES_PER_NEWS = 8
_ZEROS = array("I", bytes(4 * 65536))


def _tokens(count: int) -> array[int]:
    """Nobody looks at their ids."""
    return _ZEROS[:count] if count <= len(_ZEROS) else array("I", bytes(4 * count))


class WorkerWords:
    """The voice of one worker. `meter` measures what it tells of its load."""

    __slots__ = (
        "_changes",
        "_changes_per_news",
        "_constant_bytes",
        "_kind",
        "_news",
        "_next_news_s",
        "_tell",
        "_worker_id",
        "meter",
        "work_seen",
    )

    def __init__(self, worker_id: str, tell: Callable[[Event], None], kind: WorkerKind) -> None:
        self._worker_id = worker_id
        self._tell = tell
        self.work_seen = 0
        self._news = self._changes = 0
        self._changes_per_news = 1
        self._next_news_s = 0.0
        self._take_kind(kind)

    def _take_kind(self, kind: WorkerKind) -> None:
        self._kind = kind
        self._constant_bytes = int(kind.times.handoff_bytes(0.0))
        per_token = (kind.times.handoff_bytes(4096.0) - self._constant_bytes) / 4096.0
        self.meter = LoadMeter(per_token, self._constant_bytes)

    def credits(self, *, holds: bool, draining: bool) -> None:
        """What it takes, as of no work at all; of all that it has seen once it holds nothing."""
        kind = self._kind
        slots, tokens = (0, 0) if draining else (kind.max_requests, kind.kv_tokens)
        self._tell(
            CreditsChanged(
                self._worker_id,
                slots,
                tokens,
                kind.kv_tokens,
                kind.max_requests,
                tokens,
                0 if holds else self.work_seen,
                draining,
            )
        )

    def reserved(self, job: Job) -> None:
        # The core passes tickets on unread; here the handle says it all.
        ticket = HandoffTicket(reservation=job.handle)
        self._tell(Reserved(self._worker_id, job.handle, ticket))

    def state_arrived(self, job: Job) -> None:
        self._tell(StateArrived(self._worker_id, job.handle, job.first_index))

    def tokens(self, rows: Sequence[tuple[Job, int]]) -> None:
        """Of each request all that were made here, less those told before."""
        if len(rows) == 1:
            job, made = rows[0]
            told = job.told_tokens
            if made > told:
                job.told_tokens = made
                self._tell(
                    TokensArrived(
                        self._worker_id,
                        [job.handle],
                        [job.first_index + told],
                        [made - told],
                        _tokens(made - told),
                    )
                )
            return
        news = [(job, made) for job, made in rows if made > job.told_tokens]
        if not news:
            return
        counts = [made - job.told_tokens for job, made in news]
        self._tell(
            TokensArrived(
                self._worker_id,
                [job.handle for job, _ in news],
                [job.first_index + job.told_tokens for job, _ in news],
                counts,
                _tokens(sum(counts)),
            )
        )
        for job, made in news:
            job.told_tokens = made

    def prompt_read(self, job: Job) -> None:
        """And its state stays here."""
        self._prefill_done(job, None)

    def handed_off(self, job: Job, state_bytes: float, seconds: float) -> None:
        """So many bytes were written in that time."""
        self._prefill_done(job, self._report(state_bytes, seconds))

    def moved(self, job: Job, state_bytes: float, seconds: float) -> None:
        """So many bytes were written in that time of a request that decoded here."""
        report = self._report(state_bytes, seconds)
        reason = common_pb2.REASON_MIGRATED
        self._tell(Ended(self._worker_id, job.handle, reason, handoff=report))

    def stayed(self, job: Job, reason: Reason) -> None:
        self._tell(Stayed(self._worker_id, job.handle, reason))

    def _report(self, state_bytes: float, seconds: float) -> HandoffReport:
        self.meter.sent(int(state_bytes), seconds)
        return HandoffReport(
            kv_bytes=max(int(state_bytes) - self._constant_bytes, 0),
            mamba_bytes=self._constant_bytes,
            transfer_ms=seconds * 1e3,
            handoff_ms=seconds * 1e3,
        )

    def _prefill_done(self, job: Job, report: HandoffReport | None) -> None:
        prefill_ms = job.prefill_s * 1e3
        self._tell(PrefillDone(self._worker_id, job.handle, prefill_ms, report, job.cached_tokens))

    def ended(self, job: Job, reason: Reason) -> None:
        self._tell(Ended(self._worker_id, job.handle, reason))

    def drained(self) -> None:
        self._tell(Drained(self._worker_id))

    def flipped(self, role: Role, kind: WorkerKind) -> None:
        self._take_kind(kind)
        self._tell(Flipped(self._worker_id, role))

    def not_flipped(self, role: Role, reason: Reason, detail: str) -> None:
        self._tell(Flipped(self._worker_id, role, reason, detail))

    def changed(self, now_s: float) -> None:
        """Prompts were read or answers ended: say how quickly it works, now and then."""
        self._changes += 1
        if now_s < self._next_news_s or self._changes < self._changes_per_news:
            return
        load = self.meter.news(
            now_s,
            0.0,
            running_requests=0,
            decoding_requests=0,
            waiting_prefill_tokens=0,
            link_bytes_in_flight=0,
        )
        if load is None:
            return
        self._news += 1
        self._changes = 0
        self._next_news_s = now_s + _NEWS_S
        if self._news == _LEARNING_NEWS:
            self._changes_per_news = _CHANGES_PER_NEWS
        self._tell(
            LoadChanged(
                self._worker_id,
                prefill_tokens_per_s=load.prefill_tokens_per_s,
                step_ms=load.step_ms,
                step_requests=load.step_requests,
                step_tokens=load.step_tokens,
                link_bytes_per_s=load.link_bytes_per_s,
                state_bytes_per_token=load.state_bytes_per_token,
                state_bytes_per_request=load.state_bytes_per_request,
            )
        )

    def cache(self, stored: list[int], removed: list[int], *, reset: bool = False) -> None:
        """What came into the prefix cache and what went; a state goes with each block."""
        if not (stored or removed or reset):
            return
        self._tell(
            CacheChanged(
                self._worker_id,
                TRACE_BLOCK_TOKENS,
                reset,
                stored,
                removed,
                [(name, name, TRACE_BLOCK_TOKENS) for name in stored],
                removed,
            )
        )
