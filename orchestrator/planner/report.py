"""A plan as the document that `--json` prints. Units are in the names."""

from __future__ import annotations

from orchestrator.planner.colocated import ColocatedChoice
from orchestrator.planner.plan import Chosen, Handoff, Plan, WorkerPlan
from orchestrator.planner.question import Question
from workers.perf.layouts import Layout

Document = dict[str, object]


def document(plan: Plan, seconds: float) -> Document:
    """The whole answer."""
    question = plan.question
    return {
        "question": _question(question),
        "feasible": plan.obstacle is None,
        "obstacle": None
        if plan.obstacle is None
        else {
            "field": plan.obstacle.field,
            "message": plan.obstacle.message,
            "nearest": plan.obstacle.nearest,
        },
        "best": None if plan.chosen is None else _chosen(plan.chosen, question),
        "colocated": None if plan.colocated is None else _colocated(plan.colocated, question),
        "gain_over_colocated": gain_over_colocated(plan),
        "frontier": [
            {
                "tokens_per_s_user": point.tokens_per_s_user,
                "tokens_per_s_gpu": point.tokens_per_s_gpu,
                "itl_ms": point.itl_s * 1e3,
                "ctx_gen_ratio": point.gpu_ratio,
                "prefill": point.prefill,
                "decode": point.decode,
            }
            for point in plan.frontier
        ],
        "colocated_frontier": [
            {"tokens_per_s_user": user, "tokens_per_s_gpu": gpu}
            for user, gpu in plan.colocated_frontier
        ],
        "error_estimate": question.efficiency.error,
        "efficiency": question.efficiency.name,
        "points": plan.points,
        "search_s": seconds,
    }


def gain_over_colocated(plan: Plan) -> float | None:
    """Tokens a second for each GPU over those of colocated serving for the same targets."""
    if plan.chosen is None or plan.colocated is None or plan.obstacle is not None:
        return None
    ours = plan.chosen.sustained_rps / plan.chosen.devices
    return ours / (plan.colocated.sustained_rps / plan.colocated.devices)


def _question(question: Question) -> Document:
    model = question.model
    return {
        "model": model.name,
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "hardware": question.hardware.name,
        "sources": dict(question.hardware.sources),
        "gpus": question.devices,
        "precision": question.precision.name,
        "workload": question.workload.description,
        "isl_tokens": question.workload.mean_isl,
        "osl_tokens": question.workload.mean_osl,
        "prefix_hit": question.workload.prefix_hit,
        "ttft_ms": question.targets.ttft_s * 1e3,
        "itl_ms": question.targets.itl_s * 1e3,
        "percentile": question.targets.percentile,
        "requests_per_s": question.requests_per_s,
        "draft_tokens": list(question.drafting.lengths),
    }


def _layout(layout: Layout) -> Document:
    return {
        "pp": layout.pp,
        "dp": layout.dp,
        "kvp": layout.kvp,
        "tpa": layout.tpa,
        "tpf": layout.tpf,
        "ep": layout.ep,
        "hopb": layout.hopb,
        "gpus": layout.ranks,
    }


def _worker(worker: WorkerPlan) -> Document:
    return {
        "count": worker.count,
        "layout": _layout(worker.layout),
        "batch": worker.batch,
        "memory_bytes": worker.memory_bytes,
        "weight_bytes": worker.weight_bytes,
        "requests_per_s": worker.rate_rps,
        "utilisation": worker.utilisation,
        "bound_by_link": worker.link_bound,
        "why": [
            {"operation": one.operation, "bound": one.bound, "share": one.share}
            for one in worker.shares
        ],
    }


def _chosen(chosen: Chosen, question: Question) -> Document:
    return {
        "prefill": _worker(chosen.prefill),
        "decode": _worker(chosen.decode),
        "chunk_tokens": chosen.chunk_tokens,
        "draft_tokens": chosen.draft_tokens,
        "acceptance_length": chosen.acceptance_length,
        "gpus": chosen.devices,
        "ctx_gen_ratio": chosen.gpu_ratio,
        "balanced_ctx_gen_ratio": chosen.balanced_ratio,
        "sustained_requests_per_s": chosen.sustained_rps,
        "tokens_per_s_gpu": chosen.tokens_per_s_gpu,
        "tokens_per_s_user": chosen.tokens_per_s_user,
        "ttft_ms": chosen.ttft_s * 1e3,
        "prefill_ms": chosen.read_s * 1e3,
        "itl_ms": chosen.itl_s * 1e3,
        "bound_by": chosen.bound,
        "handoff": _handoff(chosen.handoff),
        "memory_bytes_of_gpu": question.hardware.memory_bytes,
    }


def _handoff(handoff: Handoff) -> Document:
    return {
        "bytes_per_request": handoff.bytes_per_request,
        "state_bytes": handoff.state_bytes,
        "exposed_ms": handoff.exposed_s * 1e3,
        "egress_bytes_per_s": handoff.egress_bytes_per_s,
        "ingress_bytes_per_s": handoff.ingress_bytes_per_s,
        "link_bytes_per_s": handoff.link_bytes_per_s,
    }


def _colocated(choice: ColocatedChoice, question: Question) -> Document:
    return {
        "count": choice.count,
        "layout": _layout(choice.layout),
        "batch": choice.slots,
        "chunk_tokens": choice.chunk_tokens,
        "draft_tokens": choice.draft_tokens,
        "gpus": choice.devices,
        "itl_ms": choice.itl_s * 1e3,
        "itl_ms_while_reading": choice.chunk_itl_s * 1e3,
        "ttft_ms": choice.ttft_s * 1e3,
        "sustained_requests_per_s": choice.sustained_rps,
        "tokens_per_s_gpu": choice.sustained_rps * question.workload.mean_osl / choice.devices,
    }
