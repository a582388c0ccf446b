"""Plans meet their targets with what they have, or say what stands in the way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.planner.asking import Wishes, ask
from orchestrator.planner.pareto import frontier_by_size
from orchestrator.planner.phases import decode_points, prefill_points
from orchestrator.planner.plan import Chosen, Plan, make_plan
from orchestrator.planner.question import Question
from orchestrator.planner.solve import best_for_devices, exhaustive
from orchestrator.planner.workload import sampled
from tests.unit.planner.questions import question
from workers.perf.errors import PerfError


def _chosen(asked: Question) -> Chosen:
    plan = make_plan(asked)
    assert plan.obstacle is None, plan.obstacle
    assert plan.chosen is not None
    return plan.chosen


def test_a_feasible_plan_keeps_its_promises() -> None:
    asked = question(acceptance=2.5)
    chosen = _chosen(asked)
    assert chosen.ttft_s <= asked.targets.ttft_s * 1.001
    assert chosen.itl_s <= asked.targets.itl_s
    assert chosen.devices <= asked.devices
    used = sum(w.count * w.layout.ranks for w in (chosen.prefill, chosen.decode))
    assert used == chosen.devices
    for worker in (chosen.prefill, chosen.decode):
        assert worker.memory_bytes <= 0.9 * asked.hardware.memory_bytes
        assert worker.utilisation <= 1.0
        assert worker.count * worker.rate_rps >= chosen.sustained_rps * 0.999


def test_counts_are_near_the_balance() -> None:
    chosen = _chosen(question(gpus=64))
    assert chosen.gpu_ratio == pytest.approx(chosen.balanced_ratio, rel=0.25)


@pytest.mark.parametrize(
    ("model", "hardware", "gpus"),
    [("nemotron-3-super", "h200", 8), ("llama-3.1-70b", "h100", 12), ("llama-3.1-8b", "h100", 3)],
)
def test_the_search_finds_what_trying_everything_finds(
    model: str, hardware: str, gpus: int
) -> None:
    asked = question(model, hardware, gpus)
    prefill, _ = prefill_points(asked.phase, asked.workload, gpus)
    decode, _ = decode_points(asked.phase, asked.workload, gpus, asked.drafting)
    kept = prefill.take(frontier_by_size(prefill.read_s, prefill.rate, prefill.ranks))
    ours = best_for_devices(kept, decode, asked.workload, gpus, asked.targets)
    best = exhaustive(prefill, decode, asked.workload, gpus, asked.targets)
    assert ours is not None
    assert best is not None
    assert ours.sustained_rps == pytest.approx(best.sustained_rps, rel=0.01)


def test_more_devices_sustain_more() -> None:
    rates = [_chosen(question(gpus=gpus)).sustained_rps for gpus in (8, 16, 32)]
    assert rates == sorted(rates)
    assert rates[2] > 1.9 * rates[1]


def test_a_demand_takes_as_few_devices_as_it_needs() -> None:
    most = _chosen(question(gpus=32))
    chosen = _chosen(question(gpus=32, requests_per_s=most.sustained_rps / 4))
    assert chosen.devices <= 16
    assert chosen.sustained_rps >= most.sustained_rps / 4


def test_cached_prefixes_and_drafts_raise_what_is_sustained() -> None:
    plain = _chosen(question()).sustained_rps
    assert _chosen(question(prefix_hit=0.5)).sustained_rps > 1.1 * plain
    assert _chosen(question(acceptance=2.5)).sustained_rps > 1.05 * plain


def test_heavy_tailed_prompts_sustain_less_than_equal_ones_of_the_same_mean() -> None:
    asked = question("llama-3.1-70b", gpus=16, ttft_ms=2000)
    tail = [1000] * 90 + [71920 // 2] * 10
    mean = sum(tail) // len(tail)
    equal = replace(asked, workload=sampled([mean] * 100, [256] * 100, percentile=0.95))
    heavy = replace(asked, workload=sampled(tail, [256] * 100, percentile=0.95))
    tight = make_plan(heavy)
    assert tight.obstacle is not None or (
        tight.chosen is not None and tight.chosen.sustained_rps < _chosen(equal).sustained_rps
    )


def test_the_frontier_trades_throughput_for_speed() -> None:
    plan = make_plan(question(gpus=32))
    users = [point.tokens_per_s_user for point in plan.frontier]
    rates = [point.tokens_per_s_gpu for point in plan.frontier]
    assert len(users) > 5
    assert users == sorted(users)
    assert rates == sorted(rates, reverse=True)


def test_the_chosen_plan_is_on_the_frontier_or_above() -> None:
    plan = make_plan(question(gpus=32))
    assert plan.chosen is not None
    quick_enough = [
        point.tokens_per_s_gpu
        for point in plan.frontier
        if point.itl_s <= plan.question.targets.itl_s
    ]
    assert plan.chosen.tokens_per_s_gpu >= max(quick_enough) * 0.99


def test_prefill_heavy_traffic_on_a_large_model_is_better_disaggregated() -> None:
    plan = make_plan(question("deepseek-r1", "h200", 64, isl=16384, osl=512))
    assert plan.chosen is not None
    per_gpu = plan.chosen.sustained_rps / plan.chosen.devices
    other = plan.colocated
    assert other is None or per_gpu > other.sustained_rps / other.devices


def test_a_small_model_that_mostly_generates_is_not() -> None:
    plan = make_plan(question("llama-3.1-8b", "h100", 4, isl=512, osl=4096))
    assert plan.chosen is not None
    assert plan.colocated is not None
    per_gpu = plan.chosen.sustained_rps / plan.chosen.devices
    assert per_gpu < 1.1 * plan.colocated.sustained_rps / plan.colocated.devices


def test_why_explains_the_whole_time_of_both_workers() -> None:
    chosen = _chosen(question(acceptance=2.5))
    for worker in (chosen.prefill, chosen.decode):
        assert sum(one.share for one in worker.shares) == pytest.approx(1.0, abs=0.05)
        assert worker.shares[0].share == max(one.share for one in worker.shares)


def _obstacle(plan: Plan, field: str) -> float:
    assert plan.obstacle is not None
    assert plan.obstacle.field == field
    assert plan.obstacle.nearest is not None
    return plan.obstacle.nearest


def test_too_little_memory_names_the_devices_that_would_do() -> None:
    plan = make_plan(question("llama-3.1-405b", "h100", 4))
    gpus = _obstacle(plan, "gpus")
    assert plan.chosen is None
    assert make_plan(question("llama-3.1-405b", "h100", int(gpus), itl_ms=100)).chosen is not None


@pytest.mark.parametrize(
    ("field", "targets"), [("itl_ms", {"itl_ms": 0.1}), ("ttft_ms", {"ttft_ms": 5.0})]
)
def test_a_target_too_tight_names_the_nearest_that_is_met(
    field: str, targets: dict[str, float]
) -> None:
    plan = make_plan(question(gpus=32, **targets))  # type: ignore[arg-type]
    nearest = _obstacle(plan, field)
    assert plan.chosen is not None
    again = make_plan(question(gpus=32, **{field: nearest * 1.01}))  # type: ignore[arg-type]
    assert again.obstacle is None


def test_a_demand_too_high_names_what_is_sustained_and_what_it_takes() -> None:
    plan = make_plan(question(gpus=16, requests_per_s=500.0))
    sustained = _obstacle(plan, "requests_per_s")
    assert plan.chosen is not None
    assert plan.chosen.sustained_rps == pytest.approx(sustained)
    assert plan.obstacle is not None
    assert "devices would serve it" in plan.obstacle.message


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"model": "llama-3.1-8b", "acceptance": 2.0}, "no MTP block"),
        ({"acceptance": 9.0}, "from 1 to 4"),
        ({"isl": None}, "give --isl and --osl"),
        ({"model": "nobody"}, "no such built-in model"),
        ({"hardware": "abacus"}, "unknown; choose one of"),
        ({"precision": "int1"}, "precision 'int1'"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(wishes: dict[str, object], says: str) -> None:
    usual: dict[str, object] = {
        "model": "nemotron-3-super",
        "hardware": "h200",
        "devices": 8,
        "isl": 128,
        "osl": 128,
        "ttft_ms": 1000.0,
        "itl_ms": 30.0,
    }
    with pytest.raises(PerfError, match=says):
        ask(Wishes(**(usual | wishes)))  # type: ignore[arg-type]


def test_every_candidate_of_a_plan_was_evaluated_once() -> None:
    asked = question(gpus=8)
    decode, room = decode_points(asked.phase, asked.workload, 8, asked.drafting)
    assert room.fitting == len(decode)
    rows = np.stack(
        [
            *(getattr(decode.layouts, name) for name in decode.layouts.__slots__),
            decode.slots,
            decode.drafts,
        ]
    )
    assert len(np.unique(rows, axis=1).T) == len(decode)
