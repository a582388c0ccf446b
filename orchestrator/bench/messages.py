"""What the bench and a contender's process say to each other: one JSON line each way.

Contenders only report what happened and when, step by step; every rate and ratio is computed from
that in one place (`measures`), so that no engine is measured by a definition of its own.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from workers.config import Dtype

_GIVEN = ConfigDict(frozen=True, extra="forbid")


class Load(BaseModel):
    """Load a model and set memory aside; the first message, once. Answer: `Loaded`."""

    model_config = _GIVEN
    do: Literal["load"] = "load"
    model: str
    dtype: Dtype
    draft_tokens: int | Literal["auto"] = 0
    max_requests: int
    max_request_tokens: int
    kv_tokens: int
    state_bytes: int  # for engines that take the size of their state in bytes
    step_tokens: int


class Loaded(BaseModel):
    """`versions` of the libraries that the contender computes with."""

    model_config = _GIVEN
    versions: dict[str, str]


class Run(BaseModel):
    """Answer prompts greedily, all of them known at the start. Answer: `Timeline`.

    `static_batch` is for contenders that cannot take requests in while others run: so many prompts
    at a time, in order. None takes all of them at once.
    """

    model_config = _GIVEN
    do: Literal["run"] = "run"
    prompts: list[list[int]]
    output_tokens: list[int]
    static_batch: int | None = None


class Speculation(BaseModel):
    """Decode steps, and by draft position how often it was reached and accepted."""

    model_config = _GIVEN
    steps: int
    drafted: list[int]
    accepted: list[int]


class Timeline(BaseModel):
    """What a run did: after step i, `elapsed_s[i]` since its start, request r had got
    `tokens[i][r]` more tokens. `peak_bytes` is the most resident memory during the run."""

    model_config = _GIVEN
    elapsed_s: list[float]
    tokens: list[list[int]]
    peak_bytes: int
    speculation: Speculation | None = None
    cached_tokens: list[int] = []  # by request, prompt tokens that a cached prefix spared


class Profile(BaseModel):
    """Profile decode steps of a batch. Answer: `Profiled`."""

    model_config = _GIVEN
    do: Literal["profile"] = "profile"
    prompts: list[list[int]]
    steps: int


class Profiled(BaseModel):
    """Of one decode step: `step_s` without the profiler, then with it the whole step, the part of
    it inside torch operations, and how many of these our code called."""

    model_config = _GIVEN
    step_s: float
    profiled_step_s: float
    torch_s: float
    operations: float


class MeasureRoofline(BaseModel):
    """Measure what this machine can read and multiply. Answer: `Roofline`."""

    model_config = _GIVEN
    do: Literal["roofline"] = "roofline"
    batch: int


class Roofline(BaseModel):
    """What a step must do, and how quickly torch does such things here.

    weight_bytes: of all weights that a step reads whole (all but the embedding table).
    token_flops: 2 for each element of the matrices that a token is multiplied with.
    read_bytes_per_s: the fastest read of a tensor far larger than the caches.
    matmul_flops_per_s: of the model's own matrices with as many rows as the batch, from cache.
    wide_matmul_flops_per_s: the same with many rows.
    """

    model_config = _GIVEN
    weight_bytes: int
    token_flops: int
    read_bytes_per_s: float
    matmul_flops_per_s: float
    wide_matmul_flops_per_s: float


Request = Load | Run | Profile | MeasureRoofline
