"""What the safetensors files of a folder hold, read from their headers only.

Exists so that a wrong or cut checkpoint is refused before anything is allocated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from workers.checkpoint.schema import canonical_name
from workers.model.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Header:
    """One tensor of a file: its name there, shape, and data type in safetensors' spelling."""

    key: str
    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def item_bytes(self) -> int:
        """Bytes of one element; for data types that `is_known`."""
        return _DTYPES[self.dtype].itemsize


def dtype_name(dtype: torch.dtype) -> str:
    """A data type in safetensors' spelling."""
    return _NAMES[dtype]


def read_headers(folder: Path) -> dict[str, Header]:
    """All tensors of a checkpoint folder, by canonical name.

    Raises:
        CheckpointError: no safetensors file, an unreadable one, or a bad index.
    """
    headers: dict[str, Header] = {}
    for file in _files(folder):
        for header in _file_headers(file):
            name = canonical_name(header.key)
            if name in headers:
                raise CheckpointError(
                    f"{folder}: tensor '{header.key}' is in {file.name} and, as "
                    f"'{headers[name].key}', in {headers[name].file.name}. Keep one of them."
                )
            headers[name] = header
    return headers


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those of its index, or the single one."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        single = folder / "model.safetensors"
        if not single.exists():
            raise CheckpointError(
                f"{folder}: neither model.safetensors nor model.safetensors.index.json. "
                "Give the folder of a Hugging Face checkpoint saved as safetensors."
            )
        return [single]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: no readable 'weight_map': {error!r}") from error
    files = [folder / name for name in names]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise CheckpointError(f"{folder}: the index names missing files: {', '.join(missing)}")
    return files


def _file_headers(file: Path) -> Iterator[Header]:
    try:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                view = opened.get_slice(key)
                yield Header(key, file, tuple(view.get_shape()), view.get_dtype())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file}: cannot be read as safetensors: {error}. Copy the file again."
        ) from error
