"""What an autoscaling policy is told of a running cluster: from what its routers say of themselves.

Several routers share the workers: sums of requests are added up, and what a worker says of itself
is the same to each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.autoscaler.ground import Ground
from orchestrator.autoscaler.observation import ROLES, Observation, Traffic, WorkerSeen
from orchestrator.simulator.cluster import WorkerKind
from orchestrator.simulator.linear_times import LinearStepTimes
from orchestrator.spec import ClusterSpec
from orchestrator.spec.schema import DecodePool, PrefillPool
from protos.tandem.v1 import admin_pb2
from router.core.events import Role
from workers.engine.simulated.times import LinearTimes
from workers.perf.layouts import Layout

_STEP_TOKENS = 512  # as `WorkerConfig`
_SUMS = (
    "arrived",
    "prompt_tokens",
    "finished",
    "answer_tokens",
    "answer_squares",
    "ended_prompt_tokens",
    "cached_tokens",
    "failed",
    "met_ttft",
    "met_itl",
    "ttft_s",
    "itl_s",
)


def ground_of_spec(spec: ClusterSpec) -> Ground:
    """What the policy is told of a cluster's file.

    Times begin as those of the shipped model on a CPU core; what the workers measure corrects them
    within some periods, whatever the model and the machine.
    """
    decode, tp = spec.decode.layout, spec.prefill.layout.tp
    layouts: dict[Role, Layout] = {
        "prefill": Layout(tpa=tp, tpf=tp),
        "decode": Layout(kvp=decode.kvp, tpa=decode.tpa, tpf=decode.tpf, ep=decode.ep),
    }
    linear = LinearTimes()
    pools: dict[Role, PrefillPool | DecodePool] = {"prefill": spec.prefill, "decode": spec.decode}
    strictest = next(iter(spec.classes.values()))
    return Ground(
        kinds={
            role: WorkerKind(
                LinearStepTimes(linear),
                layout=str(layouts[role]),
                gpus=pools[role].layout.ranks,
                max_requests=pools[role].max_requests,
                kv_tokens=pools[role].kv_tokens,
                step_tokens=_STEP_TOKENS,
                out_bytes_per_s=linear.bytes_per_s,
                in_bytes_per_s=linear.bytes_per_s,
            )
            for role in ROLES
        },
        ttft_s=strictest.ttft_ms / 1e3,
        itl_s=strictest.itl_ms / 1e3,
        least={role: pools[role].workers.min for role in ROLES},
        most={role: pools[role].workers.max for role in ROLES},
        period_s=spec.autoscaling.period_s,
        cold_start_s=spec.autoscaling.cold_start_s,
        role_flip=spec.autoscaling.role_flip,
        season_s=spec.autoscaling.season_s,
    )


class LiveObserver:
    """Remembers the sums of each router, so that an observation is of what came since the last.

    Each router is held against itself, because they come and go: what one that is new has counted
    so far would look like a burst.
    """

    def __init__(self) -> None:
        self._before: dict[str, admin_pb2.Traffic] = {}
        self._as_of_s: float | None = None

    def observe(
        self,
        now_s: float,
        answers: Mapping[str, admin_pb2.GetStatusResponse],
        deployed: Mapping[Role, int],
    ) -> Observation:
        """The cluster now, by what its routers answered, each under its own name; `deployed` is
        how many workers each pool was asked to have."""
        routers = list(answers.values())
        workers = _workers(routers)
        began: dict[Role, int] = dict.fromkeys(ROLES, 0)  # by the pool that started them
        serving, flipping = dict(began), dict(began)
        for worker in workers.values():
            if not worker.connected or worker.duty in ("draining", "safe_to_delete"):
                continue
            role = _role(worker.role)
            began[_home(worker)] += 1
            if worker.duty == "flipping":
                flipping["decode" if role == "prefill" else "prefill"] += 1
            else:
                serving[role] += 1
        period_s = 0.0 if self._as_of_s is None else now_s - self._as_of_s
        self._as_of_s = now_s
        return Observation(
            now_s,
            sum(one.queued_requests for one in routers),
            sum(one.running_requests for one in routers),
            serving,
            {role: max(deployed[role] - began[role], 0) for role in ROLES},
            period_s=max(period_s, 1e-3),
            flipping=flipping,
            traffic=self._traffic(answers),
            workers=tuple(_seen(worker) for worker in workers.values() if worker.connected),
        )

    def _traffic(self, answers: Mapping[str, admin_pb2.GetStatusResponse]) -> Traffic:
        new: dict[str, float] = dict.fromkeys(_SUMS, 0.0)
        bins: dict[int, int] = {}
        for name, answer in answers.items():
            now, before = answer.traffic, self._before.get(name)
            if before is None or now.arrived < before.arrived:
                # Just met, or begun again: its sums are of a time that is not ours.
                continue
            for field in _SUMS:
                new[field] += max(float(getattr(now, field) - getattr(before, field)), 0.0)
            pairs = zip(now.prompt_bins, before.prompt_bins, strict=False)
            for index, (count, was) in enumerate(pairs):
                if count > was:
                    bins[index] = bins.get(index, 0) + count - was
        self._before = {name: answer.traffic for name, answer in answers.items()}
        routers = list(answers.values())
        finished = int(new["finished"])
        return Traffic(
            arrived=int(new["arrived"]),
            prompt_tokens=new["prompt_tokens"],
            prompt_bins=bins,
            finished=finished,
            answer_tokens=new["answer_tokens"],
            answer_squares=new["answer_squares"],
            ended_prompt_tokens=new["ended_prompt_tokens"],
            cached_tokens=new["cached_tokens"],
            failed=int(new["failed"]),
            met_ttft=int(new["met_ttft"]),
            met_itl=int(new["met_itl"]),
            ttft_s=new["ttft_s"] / max(finished, 1),
            itl_s=new["itl_s"] / max(finished, 1),
            running=sum(one.traffic.running for one in routers),
            running_tokens=float(sum(one.traffic.running_tokens for one in routers)),
        )


def _workers(
    routers: Sequence[admin_pb2.GetStatusResponse],
) -> dict[str, admin_pb2.WorkerStatus]:
    """By id; of a worker that some routers have no session with, what another says."""
    found: dict[str, admin_pb2.WorkerStatus] = {}
    for router in routers:
        for worker in router.workers:
            if worker.worker_id not in found or worker.connected:
                found[worker.worker_id] = worker
    return found


def _seen(worker: admin_pb2.WorkerStatus) -> WorkerSeen:
    return WorkerSeen(
        worker.worker_id,
        _role(worker.role),
        worker.uptime_s,
        _home(worker),
        leaving=worker.duty != "serving",
        running=worker.running_requests,
        held_tokens=max(worker.total_tokens - worker.free_tokens, 0),
        total_tokens=worker.total_tokens,
        prefill_tokens_per_s=worker.prefill_tokens_per_s,
        step_ms=worker.step_ms,
        step_requests=worker.step_requests,
    )


def _home(worker: admin_pb2.WorkerStatus) -> Role:
    return _role(worker.worker_id.partition("-")[0])


def _role(name: str) -> Role:
    return "prefill" if name == "prefill" else "decode"
