"""Calls as bytes between the ranks of one machine.

Exists because what rank 0 tells the others must be cheap and must run no code on arrival: a frame
is a length, a JSON header with names, numbers and shapes, and the tensors' bytes as they lie in
memory. It goes over the pipe that is a follower's standard input, so an idle follower waits in a
read, which has no timeout and ends when rank 0 does.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import fields
from typing import IO

import torch
from torch import Tensor

from workers.engine.native.calls import CALLS, Call

_LENGTHS = struct.Struct("<II")  # of the header and of the tensors
_DTYPES = {str(dtype): dtype for dtype in (torch.int64, torch.float32, torch.bfloat16)}
_BY_NAME = {call.__name__: call for call in CALLS}


class FrameError(ValueError):
    """Bytes that are no frame."""


def encode(call: Call) -> bytes:
    """A call as one frame."""
    header: dict[str, object] = {"call": type(call).__name__}
    bodies: list[bytes] = []
    for field in fields(call):
        value = getattr(call, field.name)
        if isinstance(value, Tensor):
            header[field.name] = [str(value.dtype), list(value.shape)]
            flat = value.detach().cpu().contiguous().flatten()
            bodies.append(flat.view(torch.uint8).numpy().tobytes())
        else:
            header[field.name] = value
    text = json.dumps(header, separators=(",", ":")).encode()
    body = b"".join(bodies)
    return _LENGTHS.pack(len(text), len(body)) + text + body


def read_call(stream: IO[bytes]) -> Call | None:
    """The next call; None at the end of the stream.

    Raises:
        FrameError: the stream ends in the middle of a frame, or holds something else.
    """
    lengths = stream.read(_LENGTHS.size)
    if not lengths:
        return None
    if len(lengths) < _LENGTHS.size:
        raise FrameError("the stream ends within a frame")
    header_bytes, body_bytes = _LENGTHS.unpack(lengths)
    text, body = stream.read(header_bytes), stream.read(body_bytes)
    if len(text) < header_bytes or len(body) < body_bytes:
        raise FrameError("the stream ends within a frame")
    try:
        return _decode(json.loads(text), body)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FrameError(f"not a call: {error}") from error


def _decode(header: dict[str, object], body: bytes) -> Call:
    values: dict[str, object] = {}
    kind = _BY_NAME[str(header.pop("call"))]
    offset = 0
    for name, value in header.items():
        if isinstance(value, list):
            dtype, shape = _DTYPES[value[0]], value[1]
            length = math.prod(shape) * dtype.itemsize
            part = bytearray(body[offset : offset + length])
            flat = torch.frombuffer(part, dtype=dtype) if part else torch.empty(0, dtype=dtype)
            values[name] = flat.view(shape)
            offset += length
        else:
            values[name] = value
    if offset != len(body):
        raise ValueError(f"{len(body) - offset} bytes too many")
    return kind(**values)  # type: ignore[arg-type]  # wrong fields raise TypeError
