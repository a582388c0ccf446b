"""What the bench asks of its load client, and what that answers: JSON lines each way."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

_GIVEN = ConfigDict(frozen=True, extra="forbid")


class Load(BaseModel):
    """Send requests for a while. Answers: a `Window` when measuring begins, then a `Sample`.

    Closed loop: `concurrency` requests are open at all times. Open loop: requests come with
    exponential gaps at `requests_per_s`, whatever happens to those before. `requests` ends either
    loop after so many.
    """

    model_config = _GIVEN
    do: Literal["load"] = "load"
    prompt_tokens: int
    output_tokens: int
    concurrency: int | None = None
    requests_per_s: float | None = None
    warm_s: float = 1.0
    measure_s: float = 5.0
    requests: int | None = None
    seed: int = 0


class Hold(BaseModel):
    """Open so many requests and keep them open until the next message. Answer: a `Window` when
    the router has taken them all."""

    model_config = _GIVEN
    do: Literal["hold"] = "hold"
    prompt_tokens: int
    output_tokens: int
    open_requests: int


class Window(BaseModel):
    """Measuring begins."""

    model_config = _GIVEN
    says: Literal["begin"] = "begin"


class Sample(BaseModel):
    """What came back within the window; times in milliseconds."""

    model_config = _GIVEN
    says: Literal["sample"] = "sample"
    window_s: float
    sent: int
    finished: int
    failed: int
    wrong: int  # of the checked answers, those that were not what they had to be
    checked: int
    tokens: int
    messages: int
    ttft_ms: list[float]  # p50, p95, p99
    client_cpu_s: float
    first_error: str = ""
