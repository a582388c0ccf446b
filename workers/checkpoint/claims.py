"""Which stored tensors make up which weight: every tensor of a checkpoint, claimed exactly once.

Exists as the pure step between headers and bytes. It knows both naming schemes (one matrix per
expert, or transformers' stacked experts), compares what is there with `inventory`, and refuses
what is missing, misshapen, of the wrong data type or left over, by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from workers.checkpoint.headers import Header, dtype_name
from workers.checkpoint.inventory import Piece, Role, StoredTensor, is_stack, pieces
from workers.checkpoint.quantisation import Form, Quantisation
from workers.checkpoint.schema import Expected, Schema, model_schema, mtp_schema
from workers.model.config import ModelConfig
from workers.model.errors import CheckpointError

_FLOATS = tuple(dtype_name(d) for d in (torch.float32, torch.bfloat16, torch.float16))


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """A matrix (or vector) as it lies in files: its form and its tensors by role."""

    form: Form
    parts: Mapping[Role, Header]


@dataclass(frozen=True, slots=True)
class Source:
    """Where one canonical weight comes from.

    `shape` is the whole weight's. With `stacked`, piece i is entry i of the first dimension;
    otherwise the only piece is the weight.
    """

    name: str
    shape: tuple[int, ...]
    stacked: bool
    pieces: tuple[StoredPiece, ...]


def claim(
    config: ModelConfig, quantisation: Quantisation, headers: Mapping[str, Header], origin: str
) -> tuple[Source, ...]:
    """Assign every stored tensor to its weight.

    Args:
        config: the shape of the model.
        quantisation: the form of its matrices.
        headers: what is stored, by canonical name.
        origin: the checkpoint, for messages.

    Raises:
        CheckpointError: a tensor is missing, misshapen, of another data type, or unexpected.
    """
    return _Claims(config, quantisation, dict(headers), origin).all()


@dataclass(slots=True)
class _Claims:
    config: ModelConfig
    quantisation: Quantisation
    unclaimed: dict[str, Header]
    origin: str

    def all(self) -> tuple[Source, ...]:
        if not self.config.mtp_layers:
            # Ignored like transformers does: a config may switch drafting off.
            self.unclaimed = {
                name: header
                for name, header in self.unclaimed.items()
                if not name.startswith("mtp.")
            }
        sources = tuple(
            source
            for name, expected in self._schema().items()
            if (source := self._source(name, expected)) is not None
        )
        if self.unclaimed:
            items = list(self.unclaimed.values())
            shown = ", ".join(f"'{item.key}' {list(item.shape)}" for item in items[:5])
            raise CheckpointError(
                f"{self.origin}: {len(items)} unexpected tensors: {shown}. config.json describes "
                "a model without them; use the config.json that belongs to the weights."
            )
        return sources

    def _schema(self) -> Schema:
        """What must be there; the MTP block only if any of it is (transformers drops it)."""
        schema = model_schema(self.config)
        if any(name.startswith("mtp.") for name in self.unclaimed):
            schema |= mtp_schema(self.config)
        return schema

    def _source(self, name: str, expected: Expected) -> Source | None:
        """The weight's pieces; None if it may be, and is, left out."""
        if is_stack(name) and name in self.unclaimed:
            whole = StoredTensor(name, expected.shape, self.config.dtype, Role.VALUES)
            stack = Piece(name, None, Form.PLAIN, (whole,))
            return Source(name, expected.shape, False, (self._stored(stack),))
        if expected.optional and name not in self.unclaimed:
            return None
        stored = tuple(
            self._stored(piece) for piece in pieces(name, expected, self.config, self.quantisation)
        )
        return Source(name, expected.shape, is_stack(name), stored)

    def _stored(self, piece: Piece) -> StoredPiece:
        parts: dict[Role, Header] = {}
        for tensor in piece.tensors:
            header = self.unclaimed.pop(tensor.name, None)
            if header is not None:
                self._check(tensor, piece.form, header)
                parts[tensor.role] = header
            elif not tensor.optional:
                raise CheckpointError(
                    f"{self.origin}: tensor '{tensor.name}' is missing, expected shape "
                    f"{list(tensor.shape)}, found none. The checkpoint is incomplete, or "
                    "config.json belongs to another model."
                )
        return StoredPiece(piece.form, parts)

    def _check(self, tensor: StoredTensor, form: Form, header: Header) -> None:
        # A scalar may be stored with one dimension.
        scalar = tensor.shape == () and header.shape == (1,)
        if header.shape != tensor.shape and not scalar:
            raise CheckpointError(
                f"{self.origin}: tensor '{header.key}' has the wrong shape: expected "
                f"{list(tensor.shape)} by config.json{_as(form)}, found {list(header.shape)}. "
                "Use the config.json of these weights."
            )
        plain = form is Form.PLAIN
        allowed = _FLOATS if plain else (dtype_name(tensor.dtype),)
        if header.dtype not in allowed:
            raise CheckpointError(
                f"{self.origin}: tensor '{header.key}' has the wrong data type: expected "
                f"{' or '.join(allowed)}{_as(form)}, found {header.dtype}. Use the config.json "
                "and hf_quant_config.json of these weights."
            )


def _as(form: Form) -> str:
    return "" if form is Form.PLAIN else f" for {form.value}"
