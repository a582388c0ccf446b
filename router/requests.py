"""A request inside the router: as a client stated it, as it was accepted, and what it gives.

Front ends make ClientRequests, validation makes GenerationRequests of them, and the dispatcher
answers each with Deltas and one Finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from protos.tandem.v1 import common_pb2
from protos.tandem.v1.inference_pb2 import RequestReport
from router.core.reasons import Reason
from router.core.tokens import TokenLogprob


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """What a client asks for; None is what it left out. Nothing here has been checked."""

    prompt: str | Sequence[int]
    prompt_field: str = "prompt"  # what the client calls it
    request_id: str = ""
    model: str = ""
    max_tokens: int | None = None
    default_max_tokens: int | None = None  # None: as many as fit
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    grammar: common_pb2.Grammar | None = None
    grammar_field: str = "grammar"  # what the client calls it
    deadline_ms: int = 0
    priority_class: str = ""
    add_special_tokens: bool = True
    traceparent: str = ""
    tenant: str = ""  # whose key it came with; empty where there are no keys
    received_s: float | None = None  # on the monotonic clock, when its first byte was looked at


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request that can be run. `deadline_ms` counts from its arrival; None is none.

    One that is `repeatable` has an id of its client's choice: sent again, it is the same request.
    """

    request_id: str
    token_ids: Sequence[int]
    sampling: common_pb2.SamplingParams
    stop: tuple[str, ...] = ()
    class_rank: int = 0
    deadline_ms: int | None = None
    traceparent: str = ""
    tenant: str = ""
    repeatable: bool = False
    received_s: float | None = None  # on the monotonic clock, when its first byte was looked at


@dataclass(slots=True, init=False)
class Delta:
    """New tokens and text. Text may lag behind its tokens, so either may be empty."""

    text: Final[str]
    token_ids: Final[Sequence[int]]
    logprobs: Final[Sequence[TokenLogprob]]  # empty when not asked for

    # As of every message: its own is compiled, which makes it quicker than one that is generated.
    def __init__(
        self, text: str, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]
    ) -> None:
        self.text = text
        self.token_ids = token_ids
        self.logprobs = logprobs


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a request; `detail` is for people and empty when the reason says all."""

    request_id: str
    reason: Reason
    detail: str
    prompt_tokens: int
    completion_tokens: int
    report: RequestReport
    retry_after_s: float | None = None  # when it may be worth sending it again
