"""A checkpoint folder as weights: the whole of it, or what one rank needs.

Exists as the one way from files to tensors. A wrong checkpoint is refused with the tensor's name
before anything is allocated; then weights are read one by one into place, so that the most memory
in use is the weights and one stored matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from workers.checkpoint.claims import Source, StoredPiece, claim
from workers.checkpoint.headers import read_headers
from workers.checkpoint.inventory import ROUTER_BIAS
from workers.checkpoint.quantisation import Quantisation
from workers.checkpoint.reading import open_files, piece_bytes, read_piece
from workers.checkpoint.region import Region
from workers.checkpoint.shard import RankShard
from workers.model.config import ModelConfig

Progress = Callable[[int, int], None]  # bytes read so far, bytes to read


class Checkpoint:
    """The tensors of a folder, checked against the model that config.json describes.

    Args:
        folder: config.json and safetensors, in either naming scheme, quantised or not.
        config: the shape that the tensors must have.

    Raises:
        CheckpointError: a file is unreadable, a tensor is missing, misshapen, of the wrong data
            type or unexpected, or the quantisation is not supported.
    """

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        quantisation = Quantisation.of_folder(folder)
        self._config = config
        self.sources = claim(config, quantisation, read_headers(folder), str(folder))

    def load(
        self,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        shard: RankShard | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Tensor]:
        """Read weights, by canonical name; experts of a layer are stacked.

        Args:
            dtype: torch.float32 or torch.bfloat16; the router's correction bias stays float32.
            device: where the weights go; quantised ones are dequantised there.
            shard: the rank to read for; None reads everything.
            progress: called with (bytes read, bytes to read) after every stored matrix.

        Raises:
            CheckpointError: a file cannot be read.
            ValueError: the shard's layout does not divide the model.
        """
        rank = shard or RankShard()
        regions = [rank.region(source.name, source.shape, self._config) for source in self.sources]
        work = list(zip(self.sources, regions, strict=True))
        total = sum(
            piece_bytes(piece, part)
            for source, region in work
            for piece, part, _ in _pieces(source, region)
        )
        weights = {}
        with open_files(_files(self.sources)) as files:
            for source, region in work:
                kept = torch.float32 if source.name.endswith(ROUTER_BIAS) else dtype
                weight = torch.empty(region.shape, dtype=kept, device=device)
                for piece, part, index in _pieces(source, region):
                    read_piece(files, piece, part, weight if index is None else weight[index])
                    if progress is not None:
                        progress(files.read_bytes, total)
                weights[source.name] = weight
        return weights


def _files(sources: tuple[Source, ...]) -> set[Path]:
    pieces = (piece for source in sources for piece in source.pieces)
    return {header.file for piece in pieces for header in piece.parts.values()}


def _pieces(source: Source, region: Region) -> Iterator[tuple[StoredPiece, Region, int | None]]:
    """(piece, what to read of it, its index in the weight that is kept), for a weight's region."""
    if not source.stacked:
        yield source.pieces[0], region, None
        return
    each = Region(region.dimensions[1:])
    kept = (expert for span in region.dimensions[0] for expert in range(*span))
    for index, expert in enumerate(kept):
        yield source.pieces[expert], each, index
