"""Reads the tensors of a Hugging Face checkpoint folder, one at a time, and checks them all.

Exists so that a wrong checkpoint is refused before anything is allocated, with the tensor's
name, and so that the two naming schemes end here: the published one (`backbone.*`, one tensor
per expert) and transformers' own (`model.*`, experts stacked). Only headers are read to check;
a tensor's bytes are read when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workers.model.config import ModelConfig
from workers.model.errors import CheckpointError
from workers.model.schema import (
    EXPERTS_DOWN,
    EXPERTS_UP,
    Expected,
    Schema,
    model_schema,
    mtp_schema,
)

_PREFIXES = ("backbone.", "model.")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: its name in the file, the file, its shape."""

    key: str
    file: Path
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor, on the CPU, in the dtype it is stored in."""
        with safe_open(self.file, framework="pt") as opened:
            tensor = opened.get_tensor(self.key)
        assert isinstance(tensor, Tensor)
        return tensor


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


def _canonical(key: str) -> str:
    for prefix in _PREFIXES:
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


class Checkpoint:
    """The tensors of a folder, found by canonical name (see `schema`) and checked.

    Args:
        folder: the checkpoint.
        config: the shape it must have.

    Raises:
        CheckpointError: a file is unreadable, or a tensor is missing, misshapen or unexpected.
    """

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self._folder = folder
        self._stored: dict[str, StoredTensor] = {}
        for file in _files(folder):
            self._stored.update(_headers(file))
        self.schema = self._required(config)
        self._check()

    def names(self) -> Iterator[str]:
        """Canonical names that the checkpoint has."""
        return (name for name in self.schema if self._has(name))

    def read(self, name: str) -> Tensor:
        """The tensor under a canonical name; experts of a layer are stacked."""
        if name in self._stored:
            return self._stored[name].read()
        return torch.stack([self._stored[part].read() for part in self._parts(name)])

    def _required(self, config: ModelConfig) -> Schema:
        """What must be there; the MTP block only if any of it is (transformers drops it)."""
        drafts = mtp_schema(config)
        if not any(name.startswith("mtp.") for name in self._stored):
            drafts = {}
        if not config.mtp_layers:
            # Ignored like transformers does: a config may switch drafting off.
            self._stored = {n: s for n, s in self._stored.items() if not n.startswith("mtp.")}
        return model_schema(config) | drafts

    def _parts(self, name: str) -> list[str]:
        """The per-expert names of a stacked tensor; empty for any other."""
        if not name.endswith((EXPERTS_UP, EXPERTS_DOWN)):
            return []
        stem, matrix = name.rsplit(".", 1)
        return [f"{stem}.{index}.{matrix}.weight" for index in range(self.schema[name].shape[0])]

    def _has(self, name: str) -> bool:
        return name in self._stored or any(part in self._stored for part in self._parts(name))

    def _check(self) -> None:
        known: set[str] = set()
        for name, expected in self.schema.items():
            parts = self._parts(name)
            if parts and name not in self._stored:
                each = Expected(expected.shape[1:])
                for part in parts:
                    self._check_one(part, each)
                known.update(parts)
            elif name in self._stored or not expected.optional:
                self._check_one(name, expected)
                known.add(name)
        unexpected = [stored for name, stored in self._stored.items() if name not in known]
        if unexpected:
            shown = ", ".join(f"'{item.key}' {list(item.shape)}" for item in unexpected[:5])
            raise CheckpointError(
                f"{self._folder}: {len(unexpected)} unexpected tensors: {shown}. config.json "
                "describes a model without them; use the config.json that belongs to the weights."
            )

    def _check_one(self, name: str, expected: Expected) -> None:
        stored = self._stored.get(name)
        shape = list(expected.shape)
        if stored is None:
            raise CheckpointError(
                f"{self._folder}: tensor '{name}' is missing, expected shape {shape}, found none. "
                "The checkpoint is incomplete, or config.json belongs to another model."
            )
        if stored.shape != expected.shape:
            raise CheckpointError(
                f"{self._folder}: tensor '{stored.key}' has the wrong shape: expected {shape} by "
                f"config.json, found {list(stored.shape)}. Use the config.json of these weights."
            )


def _headers(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    """(canonical name, tensor) for everything in one safetensors file."""
    try:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                shape = tuple(opened.get_slice(key).get_shape())
                yield _canonical(key), StoredTensor(key, file, shape)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file}: cannot be read as safetensors: {error}. Copy the file again."
        ) from error
