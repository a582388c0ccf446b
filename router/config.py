"""What one router process is told when it starts.

The orchestrator derives it from the cluster's spec; it crosses to the process as one line of JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

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
class TlsFiles:
    """PEM files. With `client_ca`, only clients with a certificate that it signed are served."""

    cert: str
    key: str
    client_ca: str | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A client's key as its digest, so that no configuration holds the key itself."""

    tenant: str
    sha256: str  # of the key's UTF-8, in hexadecimal


@dataclass(frozen=True, slots=True)
class Tenant:
    """A client's share among the others of a class, and its limit in tokens, prompt and answer."""

    name: str
    weight: float = 1.0
    tokens_per_s: float | None = None  # None: no limit
    burst_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One more model that is served."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """`classes` come strictest first. Workers are read from the directory at `store_url`; without
    one they are exactly `workers`. Port 0 asks for any free port. With `shares_ports` other routers
    listen at the same addresses, and the kernel deals connections out among them. With `api_keys`
    a client must have one of them; None asks for none."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model_path: str
    model_name: str
    cluster: str = "local"
    store_url: str | None = None
    workers: tuple[WorkerRecord, ...] = ()
    grpc: str = "127.0.0.1:50051"
    http: str = "127.0.0.1:8000"
    classes: tuple[PriorityClass, ...] = (PriorityClass("interactive", 500.0, 40.0),)
    queue_limit: int = 1024
    local_prefill_tokens: int = 16  # shorter prompts are read where they are decoded
    max_message_bytes: int = 16 * 1024 * 1024
    max_retries: int = 3  # attempts of one request that may fail before it does
    silence_s: float = 10.0  # how long workers may say nothing in the middle of a hand-off
    orphan_grace_s: float = 120.0  # how long accepted requests wait for a new decode worker
    event_log: str | None = None  # a file to record the core's events in, for router.replay
    replay_window_s: float = 60.0  # how long a retry under the same id gets the same answer
    replay_tokens: int = 1_000_000  # kept for that; the oldest answers go first
    shares_ports: bool = False
    local_socket: str | None = None  # path of a Unix socket for gRPC without keys or certificates
    tls: TlsFiles | None = None
    api_keys: tuple[ApiKey, ...] | None = None
    tenants: tuple[Tenant, ...] = ()  # others have a weight of 1 and no limit
    trace: TraceConfig = TraceConfig()  # noqa: RUF009 - frozen
    more_models: tuple[ModelFolder, ...] = ()  # of the same directory, with workers of their own

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
