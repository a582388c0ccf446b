"""What the spec means for one worker."""

from __future__ import annotations

import secrets

from orchestrator.spec import ClusterSpec
from workers.config import WorkerConfig
from workers.registry import Role
from workers.telemetry import TraceConfig


def trace_config(spec: ClusterSpec) -> TraceConfig:
    """Where every process of the cluster sends its spans."""
    return TraceConfig(otlp_endpoint=spec.telemetry.otlp, trace_file=spec.telemetry.trace_file)


def new_worker_id(role: Role) -> str:
    """An id for one start of a worker; a worker that comes back is another one."""
    return f"{role}-{secrets.token_hex(3)}"


def worker_config(
    spec: ClusterSpec, role: Role, store_url: str | None, cluster: str
) -> WorkerConfig:
    """The config of a new worker of one pool."""
    pool = spec.prefill if role == "prefill" else spec.decode
    layout = spec.decode.layout
    return WorkerConfig(
        worker_id=new_worker_id(role),
        role=role,
        model_path=spec.model.path,
        model_name=spec.model.name,
        engine=pool.engine,
        dtype=spec.model.dtype,
        device="cuda" if pool.resources.gpu else "cpu",
        kv_tokens=pool.kv_tokens,
        max_requests=pool.max_requests,
        step_limit_s=pool.step_limit_s,
        threads=pool.resources.cpu,
        store_url=store_url,
        cluster=cluster,
        tp=spec.prefill.layout.tp if role == "prefill" else 1,
        kvp=layout.kvp if role == "decode" else 1,
        tpa=layout.tpa if role == "decode" else 1,
        ep=layout.ep if role == "decode" else 1,
        tpf=layout.tpf if role == "decode" else 1,
        interleave=layout.interleave,
        hop_b=layout.hop_b,
        # Prefill too: it hands over the draft state that decode goes on from.
        draft_tokens=spec.decode.draft_tokens,
        vllm_args=tuple(pool.vllm.args),
        interpreter=pool.vllm.python if pool.engine == "vllm" else "",
        trace=trace_config(spec),
    )
