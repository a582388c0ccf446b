"""What one worker process is told at its start: a view of the cluster's spec, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from workers.engine.simulated.times import LinearTimes, NamedTimes
from workers.parallel.layout import ParallelLayout
from workers.registry import Role
from workers.telemetry import TraceConfig

Dtype = Literal["float32", "bfloat16"]
Engine = Literal["native", "vllm", "simulated"]


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """All settings of a worker, which is a group of ranks when its layout says so."""

    worker_id: str
    role: Role
    model_path: str
    model_name: str
    engine: Engine = "native"
    dtype: Dtype = "float32"
    device: str = "cpu"
    host: str = "127.0.0.1"
    port: int = 0  # 0 takes any free one
    block_tokens: int = 16  # tokens in one KV block
    kv_tokens: int = 65536  # tokens of KV that the worker has memory for
    max_requests: int = 32  # requests it holds at once, each with one Mamba state slot
    max_checkpoints: int = 64  # cached prefixes, each with a state slot of its own; 0 caches none
    step_tokens: int = 512  # most tokens in one engine step, decode windows and prompts together
    checkpoint_tokens: int = 256  # prefixes are cached at multiples of this and at prompts' ends
    threads: int = 1  # of torch, on CPU, in each rank
    cpu_kernels: bool = True  # compile fused kernels for this machine where it has a C++ compiler
    handoff_timeout_s: float = 30.0  # a transfer that takes longer is given up
    # A reservation that nobody renews is given up: routers do so three times in a lease.
    handoff_lease_s: float = 30.0
    store_url: str | None = None  # None: do not register in a directory
    cluster: str = "tandem"
    lease_ms: int = 3000
    tp: int = 1
    kvp: int = 1
    tpa: int = 1
    ep: int = 1
    tpf: int = 1
    interleave: int = 16  # consecutive tokens that go to one KVP rank before the next one's turn
    hop_b: bool = True  # attend for one half of a batch while the other half is exchanged
    collective_timeout_s: float = 60.0  # ranks that let others wait for longer are lost
    step_limit_s: float = 60.0  # an engine step that takes longer will not end; see engine/watchdog
    draft_tokens: int | Literal["auto"] = "auto"
    simulated: LinearTimes | NamedTimes = LinearTimes()  # noqa: RUF009 - frozen
    vllm_args: tuple[str, ...] = ()  # as for `vllm serve`
    interpreter: str = ""  # that runs the worker; empty: the one that starts it
    trace: TraceConfig = field(default_factory=TraceConfig)

    @property
    def parallel(self) -> ParallelLayout:
        """How the worker's ranks share the model; raises ValueError for sizes that disagree."""
        if self.role == "prefill":
            return ParallelLayout.tensor_parallel(self.tp)
        return ParallelLayout(self.kvp, self.tpa, self.tpf, self.ep, self.interleave)

    @property
    def layout(self) -> str:
        """The parallel layout for people."""
        if self.role == "prefill":
            return f"tp={self.tp}"
        return f"kvp={self.kvp} tpa={self.tpa} ep={self.ep} tpf={self.tpf}"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WorkerConfig:
        """Parse what `to_json` wrote; raises ValueError when it is something else."""
        try:
            fields = json.loads(text)
            times = fields.get("simulated", {})
            nested = {
                "simulated": (NamedTimes if "model" in times else LinearTimes)(**times),
                "vllm_args": tuple(fields.get("vllm_args", ())),
                "trace": TraceConfig(**fields.get("trace", {})),
            }
            return cls(**{**fields, **nested})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a worker config: {error}") from error
