"""A name for a model's weights that two workers can compare.

Exists because state made by one model must not be decoded by another, even one of the same
shape. Hashes the shape, the headers of the safetensors files and a sample of the weights: a
fine-tune of the same shape has another fingerprint, and nobody reads 200 GB to find out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from workers.model.config import ModelConfig
from workers.model.errors import CheckpointError

_SAMPLED_TENSORS = 64
_SAMPLE_BYTES = 1024


@dataclass(frozen=True, slots=True)
class _StoredTensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    length_bytes: int
    file: Path
    offset: int


def model_fingerprint(config: ModelConfig, checkpoint: Path) -> str:
    """32 hexadecimal digits, the same on every machine and however the files are sharded.

    Raises:
        CheckpointError: there are no safetensors files, or one has no readable header.
    """
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{checkpoint}: no *.safetensors file. Give a checkpoint's folder.")
    tensors = sorted(
        (tensor for file in files for tensor in _stored_tensors(file)), key=lambda t: t.name
    )
    digest = hashlib.sha256()
    shape = json.dumps(asdict(config), sort_keys=True, default=_plain)
    digest.update(shape.encode())
    for tensor in tensors:
        line = f"{tensor.name} {tensor.dtype} {tensor.shape} {tensor.length_bytes}\n"
        digest.update(line.encode())
    for tensor in tensors[:: max(1, len(tensors) // _SAMPLED_TENSORS)]:
        digest.update(_sample(tensor))
    return digest.hexdigest()[:32]


def _stored_tensors(file: Path) -> Iterator[_StoredTensor]:
    """The tensors of one safetensors file: a length, a JSON header, then the bytes."""
    try:
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            if header_bytes > file.stat().st_size:
                raise ValueError(f"the header would have {header_bytes} bytes")
            header = json.loads(stream.read(header_bytes))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            yield _StoredTensor(
                name,
                entry["dtype"],
                tuple(entry["shape"]),
                end - begin,
                file,
                8 + header_bytes + begin,
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: not a readable safetensors file: {error}. Download it again."
        ) from error


def _sample(tensor: _StoredTensor) -> bytes:
    """A few bytes from the middle, where weights differ even if their borders are padding."""
    length = min(_SAMPLE_BYTES, tensor.length_bytes)
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.offset + (tensor.length_bytes - length) // 2)
        return stream.read(length)


def _plain(value: object) -> str:
    return str(value.value) if isinstance(value, Enum) else str(value)
