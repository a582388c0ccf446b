"""Reads the parts of stored tensors that a region needs, as numbers.

Exists so that a quantised matrix is cut before it is read: columns of a region become bytes of
packed values and columns of scales, and only those leave the file. Files stay open for the whole
load (a release has tens of thousands of tensors in a file, whose header is parsed on opening).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from workers.checkpoint import fp8, nvfp4
from workers.checkpoint.claims import StoredPiece
from workers.checkpoint.headers import Header
from workers.checkpoint.inventory import Role
from workers.checkpoint.quantisation import Form
from workers.checkpoint.region import Box, Region, Span, box_items, box_slices
from workers.model.errors import CheckpointError

_SCALARS = {
    Form.PLAIN: (),
    Form.FP8: (Role.SCALE,),
    Form.NVFP4: (Role.GLOBAL_SCALE,),
}


class _View(Protocol):
    def __getitem__(self, index: object) -> Tensor: ...


class _OpenFile(Protocol):
    """What is used of `safetensors.safe_open`, which has no types."""

    def get_slice(self, name: str) -> _View: ...


class Files:
    """The open files of a checkpoint; counts the bytes that were read."""

    def __init__(self, opened: dict[Path, _OpenFile]) -> None:
        self._opened = opened
        self.read_bytes = 0

    def read(self, header: Header, box: Box) -> Tensor:
        """A part of a tensor, on the CPU, in the data type it is stored in.

        Raises:
            CheckpointError: the file has changed or cannot be read.
        """
        try:
            view = self._opened[header.file].get_slice(header.key)
            tensor = view[box_slices(box)] if box else view[...]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{header.file}: tensor '{header.key}' cannot be read: {error}. Copy it again."
            ) from error
        self.read_bytes += tensor.nbytes
        return tensor


@contextmanager
def open_files(files: set[Path]) -> Iterator[Files]:
    """Open files for reading; closed at the end of the block.

    Raises:
        CheckpointError: one of them cannot be opened.
    """
    with ExitStack() as stack:
        opened: dict[Path, _OpenFile] = {}
        for file in files:
            try:
                opened[file] = stack.enter_context(safe_open(file, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{file}: cannot be read as safetensors: {error}. Copy the file again."
                ) from error
        yield Files(opened)


def read_piece(files: Files, piece: StoredPiece, region: Region, target: Tensor) -> None:
    """Read a region of a piece into `target`, dequantised where `target` lies.

    Values are float32 until they are rounded to target's data type.

    Args:
        files: where the piece lies.
        piece: a matrix, or a tensor of any shape if it is plain.
        region: the part of it to keep.
        target: of region's shape; overwritten.
    """
    device = target.device
    scalars = [files.read(piece.parts[role], ()).to(device) for role in _SCALARS[piece.form]]
    for box, place in region.boxes():
        parts = [files.read(header, part).to(device) for header, part in _reads(piece, box)]
        match piece.form:
            case Form.PLAIN:
                values = parts[0]
            case Form.FP8:
                values = fp8.dequantise(parts[0], scalars[0])
            case Form.NVFP4:
                begin, end = box[1]
                first, _ = _whole_blocks(box[1])
                values = nvfp4.dequantise(parts[0], parts[1], scalars[0])
                values = values[:, begin - first : end - first]
        target[box_slices(place)].copy_(values)


def piece_bytes(piece: StoredPiece, region: Region) -> int:
    """Bytes that `read_piece` reads."""
    total = sum(piece.parts[role].item_bytes for role in _SCALARS[piece.form])
    for box, _ in region.boxes():
        total += sum(header.item_bytes * box_items(part) for header, part in _reads(piece, box))
    return total


def _reads(piece: StoredPiece, box: Box) -> list[tuple[Header, Box]]:
    """The parts of stored tensors that a box of the matrix needs, values first."""
    values = piece.parts[Role.VALUES]
    if piece.form is not Form.NVFP4:
        return [(values, box)]
    rows, columns = box
    blocks = _whole_blocks(columns)
    return [
        (values, (rows, _scaled_down(blocks, nvfp4.COLUMNS_PER_BYTE))),
        (piece.parts[Role.SCALE], (rows, _scaled_down(blocks, nvfp4.BLOCK_COLUMNS))),
    ]


def _whole_blocks(columns: Span) -> Span:
    """Columns widened to blocks that share a scale."""
    begin, end = columns
    size = nvfp4.BLOCK_COLUMNS
    return begin - begin % size, end + -end % size


def _scaled_down(span: Span, by: int) -> Span:
    return span[0] // by, span[1] // by
