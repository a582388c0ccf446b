"""What one router process is told when it starts.

The orchestrator derives it from the cluster's spec; it crosses to the process as one line of JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from router.core.policy import TenantPolicy
from workers.registry import WorkerRecord
from workers.telemetry import TraceConfig


@dataclass(frozen=True, slots=True)
class PriorityClass:
    """A class of requests with its targets."""

    name: str
    ttft_ms: float
    itl_ms: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """`classes` come strictest first. Workers are read from the directory at `store_url`; without
    one they are exactly `workers`. Port 0 asks for any free port."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model_path: str
    model_name: str
    cluster: str = "local"
    store_url: str | None = None
    workers: tuple[WorkerRecord, ...] = ()
    grpc: str = "127.0.0.1:50051"
    http: str = "127.0.0.1:8000"
    classes: tuple[PriorityClass, ...] = (PriorityClass("interactive", 500.0, 40.0),)
    tenants: dict[str, TenantPolicy] = field(default_factory=dict)
    any_tenant: TenantPolicy = TenantPolicy()  # noqa: RUF009 - frozen
    queue_limit: int = 1024
    local_prefill_tokens: int = 16  # shorter prompts are read where they are decoded
    max_message_bytes: int = 16 * 1024 * 1024
    max_retries: int = 3  # attempts of one request that may fail before it does
    orphan_grace_s: float = 120.0  # how long accepted requests wait for a new decode worker
    event_log: str | None = None  # a file to record the core's events in, for router.replay
    trace: TraceConfig = TraceConfig()  # noqa: RUF009 - frozen

    def to_json(self) -> str:
        """One line."""
        return _adapter().dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> RouterConfig:
        """Parse a configuration; raises ValueError that names each wrong field."""
        try:
            return _adapter().validate_json(text)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in problem['loc']) or 'configuration'}: "
                f"{problem['msg']}"
                for problem in error.errors(include_url=False)
            )
            raise ValueError(f"router configuration: {problems}") from error


@cache
def _adapter() -> TypeAdapter[RouterConfig]:
    return TypeAdapter(RouterConfig)
