"""The core's events as lines of text, and the core run again from them.

What a router did can be looked at again with the very code that did it: each line has the event,
the time, and a digest of the instructions that came of it, so that a replay that comes out
otherwise is noticed where it begins to.
"""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from hashlib import blake2b
from typing import NamedTuple, get_args

from google.protobuf.message import Message

from protos.tandem.v1 import handoff_pb2, inference_pb2
from router.core.events import Event
from router.core.instructions import Instruction
from router.core.lifecycle import Lifecycle
from router.core.policy import ClassPolicy, Policy, TenantPolicy
from router.core.prefixes import PrefixKeys
from router.core.tokens import TokenLogprob

_MESSAGES: Mapping[str, type[Message]] = {
    message.DESCRIPTOR.full_name: message
    for message in (
        handoff_pb2.HandoffTicket,
        inference_pb2.HandoffReport,
        inference_pb2.SpeculationReport,
    )
}


_EVENTS: Mapping[str, Callable[..., Event]] = {kind.__name__: kind for kind in get_args(Event)}


class EventLogError(ValueError):
    """A line is not what an event log has there."""


class Replayed(NamedTuple):
    """One event run again; `same` is False when other instructions came of it than at first."""

    event: Event
    now_s: float
    instructions: list[Instruction]
    same: bool


def header_line(policy: Policy, first_handle: int) -> str:
    """The first line of a log: what the core began with."""
    return json.dumps({"policy": asdict(policy), "first_handle": first_handle})


def event_line(event: Event, now_s: float, instructions: Sequence[Instruction]) -> str:
    """The line of one event and of what came of it."""
    return json.dumps([type(event).__name__, now_s, _digest(instructions), _encode(event)])


def replay(lines: Iterable[str], validate: bool = False) -> Iterator[Replayed]:
    """Run a log again, event by event; raises EventLogError for a line that is none.

    `validate` audits the core after each event.
    """
    rows = iter(lines)
    try:
        header = json.loads(next(rows))
        lifecycle = Lifecycle(_policy(header["policy"]), header["first_handle"], validate)
    except (StopIteration, KeyError, TypeError, ValueError) as error:
        raise EventLogError("line 1: not the header of an event log") from error
    for number, line in enumerate(rows, start=2):
        try:
            name, now_s, digest, values = json.loads(line)
            event = _event(name, values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EventLogError(f"line {number}: not an event: {error}") from error
        instructions = lifecycle.handle(event, now_s)
        yield Replayed(event, now_s, instructions, _digest(instructions) == digest)


def _digest(instructions: Sequence[Instruction]) -> str:
    text = json.dumps([[type(one).__name__, _encode(one)] for one in instructions])
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _policy(values: dict[str, object]) -> Policy:
    classes, tenants = values.pop("classes"), values.pop("tenants")
    any_tenant = values.pop("any_tenant")
    if not isinstance(classes, list) or not isinstance(tenants, dict):
        raise TypeError("classes must be a list and tenants an object")
    if not isinstance(any_tenant, dict):
        raise TypeError("any_tenant must be an object")
    return Policy(
        classes=tuple(ClassPolicy(**one) for one in classes),
        tenants={name: TenantPolicy(**one) for name, one in tenants.items()},
        any_tenant=TenantPolicy(**any_tenant),
        **values,  # type: ignore[arg-type]
    )


def _event(name: str, values: dict[str, object]) -> Event:
    kind = _EVENTS[name]
    return kind(**{key: _decode(value) for key, value in values.items()})


def _encode(value: object) -> object:
    match value:
        case Message():
            encoded = base64.b64encode(value.SerializeToString(deterministic=True)).decode()
            return {"message": value.DESCRIPTOR.full_name, "bytes": encoded}
        case PrefixKeys():
            return {"prefix": list(value.token_ids), "block_tokens": value.block_tokens}
        case TokenLogprob():
            return {"logprob": value.logprob, "top": value.top}
        case list() | tuple() | array():
            return [_encode(item) for item in value]
    if is_dataclass(value):
        return {field.name: _encode(getattr(value, field.name)) for field in fields(value)}
    return value


def _decode(value: object) -> object:
    match value:
        case {"message": str(name), "bytes": str(encoded)}:
            return _MESSAGES[name].FromString(base64.b64decode(encoded))
        case {"prefix": list(token_ids), "block_tokens": int(block_tokens)}:
            return PrefixKeys.of(token_ids, block_tokens)
        case {"logprob": float(logprob), "top": list(top)}:
            return TokenLogprob(logprob, tuple((token, score) for token, score in top))
        case list():
            return tuple(_decode(item) for item in value)  # as states of a cache are
    return value
