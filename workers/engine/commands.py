"""What an engine is told. `key` names a request inside one worker; the server makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protos.tandem.v1.common_pb2 import ReasonCode
from protos.tandem.v1.handoff_pb2 import HandoffTicket


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the text of an answer must be: a JSON value of a schema, any JSON object, or a string
    that a regular expression matches as a whole. `text` is the schema or the expression."""

    kind: Literal["json_schema", "json_object", "regex"]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of one request are chosen; the defaults change nothing.

    temperature: 0 is greedy.
    top_p, top_k (0 keeps all), min_p: which tokens may be sampled.
    repetition_penalty: for tokens of prompt and answer; 1 is none.
    presence_penalty, frequency_penalty: for tokens of the answer; 0 is none.
    stop_token_ids: end-of-sequence ids included, unless the client ignores them.
    top_logprobs: this many alternatives with each token; needs `logprobs`.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: bool = False
    top_logprobs: int = 0
    grammar: Grammar | None = None

    @property
    def penalised(self) -> bool:
        """Whether the tokens so far change the logits of the next one."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def plain(self) -> bool:
        """Whether the most likely token under the model is the one to take."""
        return self.temperature <= 0.0 and not self.penalised and self.grammar is None


@dataclass(frozen=True, slots=True)
class WorkItem:
    """What an engine must know of a request besides its tokens."""

    key: int
    request_id: str
    sampling: Sampling
    prompt_tokens: int
    traceparent: str = ""
    priority: int = 0  # 0 is the strictest class
    generated_tokens: int = 0  # of the token ids, the last ones: made elsewhere before


@dataclass(frozen=True, slots=True)
class Reserve:
    """Set memory aside for a request whose state another worker will send.

    Its tokens come along for penalties, and to be read here if the request has to give way. Up to
    `growth_tokens` more may be made before the state comes, and come with it.
    """

    item: WorkItem
    token_ids: tuple[int, ...]
    growth_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Prefill:
    """Read a prompt; with a ticket hand its state off, without one go on decoding here.

    Where tokens of the answer come along, nothing is sampled before decoding goes on.
    """

    item: WorkItem
    token_ids: tuple[int, ...]
    ticket: HandoffTicket | None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Forget a request in whatever state it is, and free what it holds."""

    key: int
    reason: ReasonCode.ValueType


@dataclass(frozen=True, slots=True)
class Renew:
    """A request is still wanted: the lease of its reservation, or of its hand-off, begins anew."""

    key: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no more work and say when nothing is left; or, to `resume`, take work again."""

    resume: bool = False


@dataclass(frozen=True, slots=True)
class Migrate:
    """Let a request that decodes go on where the ticket says; without one it is to stay."""

    key: int
    ticket: HandoffTicket | None


Command = Reserve | Prefill | Cancel | Renew | Drain | Migrate
