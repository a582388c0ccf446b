"""What rank 0 of a group tells all its ranks about hand-offs, and what they answer.

Exists so that the ranks may be threads or processes on other machines: plain data, a few numbers
each, encoded without pickle. A command goes to every rank of the group, and a rank takes from it
what concerns it. Numbers `transfer` and `reservation` are random and never used twice.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from dataclasses import dataclass

from protos.tandem.v1.common_pb2 import ReasonCode


@dataclass(frozen=True, slots=True)
class Open:
    """Make ready to write a request's state where a ticket says.

    ticket: a serialized HandoffTicket.
    blocks, slot: where the state is or will be in this group.
    """

    transfer: int
    ticket: bytes
    blocks: tuple[int, ...]
    slot: int


@dataclass(frozen=True, slots=True)
class Push:
    """Write the KV of tokens [first_token, last_token), which must be final in memory."""

    transfer: int
    first_token: int
    last_token: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Write the rest: KV of the tokens from `first_token` on, Mamba and draft state.

    made: tokens of the answer that the other side does not know of.
    """

    transfer: int
    first_token: int
    tokens: int
    first_token_id: int
    made: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Abort:
    """Write nothing more, and say when nothing is read any more."""

    transfer: int


@dataclass(frozen=True, slots=True)
class Expect:
    """State of `tokens` tokens, or of up to `growth_tokens` fewer, may arrive in these blocks and
    this slot."""

    reservation: int
    blocks: tuple[int, ...]
    slot: int
    tokens: int
    growth_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Forget:
    """Whatever still arrives for a reservation is of no interest."""

    reservation: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a notification from rank 0 to another agent. Metadata may be empty if it is known."""

    agent_name: str
    agent_metadata: bytes
    payload: bytes


Command = Open | Push | Finish | Abort | Expect | Forget | Tell


@dataclass(frozen=True, slots=True)
class Written:
    """A rank has written all that it had to, and reads it no more."""

    rank: int
    transfer: int
    kv_bytes: int
    mamba_bytes: int
    mtp_bytes: int
    descriptors: int
    transfer_ms: float
    hidden_ms: float


@dataclass(frozen=True, slots=True)
class Pushed:
    """A rank has written all that it was told to push, up to this token."""

    rank: int
    transfer: int
    last_token: int


@dataclass(frozen=True, slots=True)
class WriteEnded:
    """A rank gave up, or was told to: it reads no more. A reason of 0 after an Abort."""

    rank: int
    transfer: int
    reason: ReasonCode.ValueType
    detail: str


@dataclass(frozen=True, slots=True)
class WriteFailed:
    """A rank cannot go on; WriteEnded follows when nothing is read any more."""

    rank: int
    transfer: int
    reason: ReasonCode.ValueType
    detail: str


@dataclass(frozen=True, slots=True)
class Expecting:
    """A rank is ready for what may arrive."""

    rank: int
    reservation: int


@dataclass(frozen=True, slots=True)
class PairArrived:
    """All that one source rank had for this rank is here and was checked.

    layout: a serialized Layout, of the source.
    """

    rank: int
    reservation: int
    transfer: int
    source_rank: int
    layout: bytes
    tokens: int
    first_token_id: int
    made: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PairRefused:
    """What arrived is not what it should be."""

    rank: int
    reservation: int
    transfer: int
    reason: ReasonCode.ValueType
    detail: str


@dataclass(frozen=True, slots=True)
class Heard:
    """Rank 0 received a notification that concerns a hand-off as a whole."""

    agent_name: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Rank 0 could not tell an agent something: it is gone, or its metadata is stale."""

    agent_name: str
    detail: str


Event = (
    Written
    | Pushed
    | WriteEnded
    | WriteFailed
    | Expecting
    | PairArrived
    | PairRefused
    | Heard
    | Unreachable
)

_KINDS = {kind.__name__: kind for kind in (*Command.__args__, *Event.__args__)}


def encode(message: Command | Event) -> bytes:
    """A command or an event as bytes."""
    fields = [getattr(message, field.name) for field in dataclasses.fields(message)]
    return json.dumps([type(message).__name__, *fields], default=_bytes_in_words).encode()


def decode(data: bytes) -> Command | Event:
    """What `encode` wrote.

    Raises:
        ValueError: it is something else.
    """
    try:
        name, *values = json.loads(data)
        kind = _KINDS[name]
        fields = dataclasses.fields(kind)
        message: Command | Event = kind(
            *(_value(str(f.type), value) for f, value in zip(fields, values, strict=True))
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a message about hand-offs: {data[:60]!r}") from error
    return message


def decode_command(data: bytes) -> Command:
    """As `decode`, for what a rank is told; an event is a ValueError too."""
    message = decode(data)
    if not isinstance(message, Command):
        raise ValueError(f"a rank takes no events: {type(message).__name__}")
    return message


def decode_event(data: bytes) -> Event:
    """As `decode`, for what a rank says; a command is a ValueError too."""
    message = decode(data)
    if not isinstance(message, Event):
        raise ValueError(f"a rank gives no commands: {type(message).__name__}")
    return message


def _bytes_in_words(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _value(type_name: str, value: object) -> object:
    if type_name == "bytes":
        return base64.b64decode(str(value))
    return tuple(value) if isinstance(value, list) else value
