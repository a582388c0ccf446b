"""A plan in sentences: what to run, what it does, and why it does no more."""

from __future__ import annotations

from orchestrator.planner.plan import Chosen, Plan, WorkerPlan
from orchestrator.planner.report import gain_over_colocated

_REASONS = {
    "prefill": "prefill works all the time; more prefill workers would raise it",
    "decode": "decode slots are full all the time; more decode workers would raise it",
    "TTFT": "TTFT: prompts that arrive together have to wait, so workers must not be busier",
}


def summary_lines(plan: Plan) -> list[str]:
    """Sentences, the most important first."""
    lines = [] if plan.obstacle is None else [f"Not feasible. {plan.obstacle.message}."]
    chosen = plan.chosen
    if chosen is None:
        return lines
    if plan.obstacle is not None:
        lines.append("The nearest feasible plan:")
    lines.append(_counts(chosen))
    percentile = plan.question.targets.percentile
    lines.append(
        f"Sustains {chosen.sustained_rps:,.2f} requests/s; {chosen.tokens_per_s_gpu:,.0f} "
        f"tokens/s/GPU at {chosen.tokens_per_s_user:,.0f} tokens/s/user; TTFT "
        f"{chosen.ttft_s * 1e3:,.0f} ms at p{percentile * 100:g} (of which reading "
        f"{chosen.read_s * 1e3:,.0f} ms), ITL {chosen.itl_s * 1e3:.2f} ms."
    )
    if chosen.draft_tokens:
        lines.append(
            f"{chosen.draft_tokens} draft tokens a step, acceptance length "
            f"{chosen.acceptance_length:.2f}."
        )
    lines.append(f"Why not more: {_REASONS[chosen.bound]}.")
    lines.append(f"Time of prefill: {_shares(chosen.prefill)}.")
    lines.append(f"Time of decode: {_shares(chosen.decode)}.")
    lines.append(_link(chosen))
    gain = gain_over_colocated(plan)
    if gain is not None and plan.colocated is not None:
        lines.append(
            f"Over the best colocated serving for the same targets: {gain:.2f}x; its mean ITL is "
            f"{plan.colocated.itl_s * 1e3:.1f} ms, {plan.colocated.chunk_itl_s * 1e3:.1f} ms while "
            "prompts are read."
        )
    elif plan.colocated is None:
        lines.append("No colocated serving meets the targets.")
    lines.append(_trust(plan))
    return lines


def _counts(chosen: Chosen) -> str:
    return (
        f"{chosen.prefill.count} prefill workers of {chosen.prefill.layout} (batch "
        f"{chosen.prefill.batch}, chunks of {chosen.chunk_tokens}) and {chosen.decode.count} "
        f"decode workers of {chosen.decode.layout} (batch {chosen.decode.batch}): "
        f"{chosen.devices} GPUs, ctx:gen {chosen.gpu_ratio:.2f} "
        f"(balance {chosen.balanced_ratio:.2f})."
    )


def _shares(worker: WorkerPlan) -> str:
    return ", ".join(map(str, worker.shares[:4])) or "nothing"


def _link(chosen: Chosen) -> str:
    handoff = chosen.handoff
    busiest = max(handoff.egress_bytes_per_s, handoff.ingress_bytes_per_s)
    limited = [
        name
        for name, worker in (("prefill", chosen.prefill), ("decode", chosen.decode))
        if worker.link_bound
    ]
    note = f"; it holds {' and '.join(limited)} back" if limited else ""
    return (
        f"Hand-off: {handoff.bytes_per_request / 1e6:,.1f} MB a request, "
        f"{handoff.state_bytes / 1e6:,.1f} MB of it recurrent state; at most {busiest / 1e9:.2f} "
        f"of {handoff.link_bytes_per_s / 1e9:.0f} GB/s of a GPU's link{note}; "
        f"{handoff.exposed_s * 1e3:.1f} ms after the prompt is read."
    )


def _trust(plan: Plan) -> str:
    efficiency = plan.question.efficiency
    if efficiency.error is None:
        return (
            f"Kernel efficiencies are {efficiency.name}, not measured on "
            f"{plan.question.hardware.name}: compare plans with each other rather than "
            "with a clock."
        )
    return (
        f"Calibrated by {efficiency.name}: predicted times were off by {efficiency.error:.0%} on "
        "measurements left out of the fit."
    )
