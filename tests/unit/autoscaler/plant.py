"""A cluster for policies, without requests: workers that come and go, and counts of arrivals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator.autoscaler.decisions import Decision
from orchestrator.autoscaler.ground import Ground
from orchestrator.autoscaler.observation import (
    ROLES,
    Change,
    CountPolicy,
    Observation,
    Traffic,
    WorkerSeen,
)
from orchestrator.simulator.cluster import WorkerKind
from orchestrator.simulator.linear_times import LinearStepTimes
from router.core.events import Role
from router.traffic import length_bin
from workers.engine.simulated.times import LinearTimes

TIMES = LinearStepTimes(LinearTimes(step_ms=5.0, prompt_token_us=400.0, row_us=200.0))
# A prompt of 1000 tokens is read in about 0.4 s; 16 answers of 100 tokens take about 0.8 s.


def ground(**fields: object) -> Ground:
    kind = WorkerKind(TIMES, max_requests=16, kv_tokens=200_000, step_tokens=2048)
    values: dict[str, object] = {"cold_start_s": 30.0, "isl_tokens": 1000.0, "osl_tokens": 100.0}
    return Ground({"prefill": kind, "decode": kind}, 2.0, 0.05, **{**values, **fields})  # type: ignore[arg-type]


@dataclass
class Plant:
    """Obeys a policy: what is asked for serves after a cold start, what is not wanted goes."""

    one: Ground
    policy: CountPolicy
    counts: dict[Role, int] = field(default_factory=lambda: {"prefill": 1, "decode": 1})
    starting: list[tuple[float, Role]] = field(default_factory=list)
    pending: dict[Role, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    gpus: int | None = None
    isl: int = 1000
    osl: int = 100
    now_s: float = 0.0
    decisions: list[Decision] = field(default_factory=list)
    workers: tuple[WorkerSeen, ...] = ()

    def coming(self, role: Role) -> int:
        return sum(one == role for _, one in self.starting) + self.pending[role]

    def step(self, arrived: int, queued: int = 0) -> Change:
        """One period with so many arrivals, all answered."""
        self.now_s += self.one.period_s
        while self.starting and self.starting[0][0] <= self.now_s:
            self.counts[self.starting.pop(0)[1]] += 1
        change = self.policy(self._observation(arrived, queued), dict(self.counts))
        if change.decision is not None:
            self.decisions.append(change.decision)
            self._obey(change)
        return change

    def run(self, seconds: float, arrivals: Callable[[float], int]) -> None:
        """Periods with what `arrivals` says of each."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.step(arrivals(self.now_s))

    def expected(self) -> dict[Role, int]:
        return {role: self.counts[role] + self.coming(role) for role in ROLES}

    def _observation(self, arrived: int, queued: int) -> Observation:
        traffic = Traffic(
            arrived=arrived,
            prompt_tokens=float(arrived * self.isl),
            prompt_bins={length_bin(self.isl): arrived} if arrived else {},
            finished=arrived,
            answer_tokens=float(arrived * self.osl),
            answer_squares=float(arrived * self.osl**2),
            ended_prompt_tokens=float(arrived * self.isl),
        )
        return Observation(
            self.now_s,
            queued,
            0,
            dict(self.counts),
            {role: self.coming(role) for role in ROLES},
            period_s=self.one.period_s,
            pending=dict(self.pending),
            traffic=traffic,
            workers=self.workers,
        )

    def _obey(self, change: Change) -> None:
        for role, count in change.flips.items():
            other: Role = "decode" if role == "prefill" else "prefill"
            self.counts[role] += count
            self.counts[other] -= count
        self._resize(change.counts)

    def _resize(self, wanted: Mapping[Role, int]) -> None:
        for role in ROLES:
            more = wanted[role] - self.counts[role] - self.coming(role)
            for _ in range(more):
                if self.gpus is not None and self.gpus <= 0:
                    self.pending[role] += 1
                else:
                    self.starting.append((self.now_s + self.one.cold_start_s, role))
            for _ in range(-more):
                if self.pending[role]:
                    self.pending[role] -= 1
                elif (late := self._late(role)) is not None:
                    self.starting.remove(late)
                else:
                    self.counts[role] -= 1

    def _late(self, role: Role) -> tuple[float, Role] | None:
        return next((one for one in reversed(self.starting) if one[1] == role), None)
