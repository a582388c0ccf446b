"""What every client does, and what it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from loadgen.recording import Record

Role = Literal["user", "assistant", "system"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: tokens, or the messages of a chat.

    `ignore_eos` makes answers as long as `max_tokens`, where the endpoint knows that.
    """

    max_tokens: int
    token_ids: Sequence[int] = ()
    messages: Sequence[Message] = ()
    class_name: str = ""
    temperature: float = 0.0
    ignore_eos: bool = True


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What answers; None where it does not say."""

    model: str
    max_model_tokens: int | None
    vocab_size: int | None
    is_tandem: bool


class Client(Protocol):
    """Sends requests to one endpoint."""

    async def open(self) -> Endpoint:
        """Find out what answers. Raises LoadError when nothing does."""

    async def ask(self, ask: Ask, record: Record) -> None:
        """Send a request and note in the record what comes; failures too. Cancelling it cancels
        the request."""

    async def close(self) -> None:
        """Close all connections."""
