"""A rank reads from disk what it holds, in whatever form it is stored, and nothing else."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from tests.unit.checkpoint.mixed import EXPERTS, Mixed, write_mixed
from tests.unit.checkpoint.test_region import chosen
from tests.unit.checkpoint.test_shard import LAYOUTS, ranks
from workers.checkpoint import Checkpoint, RankShard
from workers.checkpoint.headers import Header
from workers.checkpoint.reading import Files
from workers.checkpoint.region import Box
from workers.parallel.layout import ParallelLayout

UNREAD = ("input_scale", "k_scale", "v_scale")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    return write_mixed(tmp_path_factory.mktemp("mixed") / "release")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(stored name, bytes) of everything that is read from a file."""
    seen: list[tuple[str, int]] = []
    original = Files.read

    def read(self: Files, header: Header, box: Box) -> Tensor:
        tensor = original(self, header, box)
        seen.append((header.key, tensor.nbytes))
        return tensor

    monkeypatch.setattr(Files, "read", read)
    return seen


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_gets_its_part_of_the_dequantised_weights(
    mixed: Mixed, layout: tuple[int, int, int, int]
) -> None:
    checkpoint = Checkpoint(mixed.folder, mixed.config)
    for shard in ranks(layout):
        loaded = checkpoint.load(torch.float32, shard=shard)
        for name, weight in mixed.weights.items():
            region = shard.region(name, tuple(weight.shape), mixed.config)
            assert torch.equal(loaded[name], chosen(weight, region)), name


def test_a_rank_reads_only_its_own_experts(mixed: Mixed, reads: list[tuple[str, int]]) -> None:
    checkpoint = Checkpoint(mixed.folder, mixed.config)
    for rank in range(4):
        reads.clear()
        checkpoint.load(torch.float32, shard=RankShard(rank, ParallelLayout(kvp=4, ep=4)))
        experts = {
            int(found[1]) for key, _ in reads if (found := re.search(r"\.experts\.(\d+)\.", key))
        }
        mine = EXPERTS // 4
        assert experts == set(range(rank * mine, (rank + 1) * mine))


def test_one_rank_reads_every_byte_once(mixed: Mixed, reads: list[tuple[str, int]]) -> None:
    Checkpoint(mixed.folder, mixed.config).load(torch.float32)
    assert len(reads) == len({key for key, _ in reads})
    assert dict(reads) == {
        name: tensor.nbytes for name, tensor in mixed.stored.items() if not name.endswith(UNREAD)
    }


@pytest.mark.parametrize("layout", [(1, 2, 1, 2), (2, 2, 1, 4), (4, 2, 1, 8)])
def test_ranks_together_read_the_whole_and_what_is_replicated(
    mixed: Mixed, reads: list[tuple[str, int]], layout: tuple[int, int, int, int]
) -> None:
    kvp, tpa, _, _ = layout
    size = kvp * tpa
    checkpoint = Checkpoint(mixed.folder, mixed.config)
    for shard in ranks(layout):
        checkpoint.load(torch.float32, shard=shard)
    read: dict[str, int] = {}
    for key, count in reads:
        read[key] = read.get(key, 0) + count
    for name, tensor in mixed.stored.items():
        if not name.endswith(UNREAD):
            assert read[name] == tensor.nbytes + replicated_bytes(name, tensor, kvp, tpa, size)


CUT_IN_ALL = (
    "A_log",
    ".D",
    "dt_bias",
    "mixer.norm",
    "out_proj",
    "o_proj",
    "lm_head",
    "shared_experts",
    "layers.5.mixer",  # the dense MLP
)


def replicated_bytes(name: str, tensor: Tensor, kvp: int, tpa: int, size: int) -> int:
    """Bytes of a stored tensor that are read more than once when `size` ranks load."""
    groups = 2
    if ".experts." in name:
        return 0
    if tensor.ndim == 0:
        return (size - 1) * tensor.nbytes
    if ".in_proj." in name or ".conv1d." in name:
        group_rows = 2 * groups * 16  # B and C
        row_bytes = tensor.nbytes // len(tensor)
        return max(0, size // groups - 1) * group_rows * row_bytes
    if ".q_proj." in name:
        return (kvp - 1) * tensor.nbytes
    if ".k_proj." in name or ".v_proj." in name:
        return (kvp * max(1, tpa // 2) - 1) * tensor.nbytes
    if any(part in name for part in CUT_IN_ALL):
        return 0
    return (size - 1) * tensor.nbytes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bytes_announced_are_the_bytes_read(
    mixed: Mixed, layout: tuple[int, int, int, int]
) -> None:
    checkpoint = Checkpoint(mixed.folder, mixed.config)
    for shard in ranks(layout):
        seen: list[tuple[int, int]] = []
        checkpoint.load(
            torch.bfloat16, shard=shard, progress=lambda *counts, seen=seen: seen.append(counts)
        )
        assert seen[-1][0] == seen[-1][1]


def test_a_layout_that_does_not_fit_is_refused_before_reading(
    mixed: Mixed, reads: list[tuple[str, int]]
) -> None:
    checkpoint = Checkpoint(mixed.folder, mixed.config)
    with pytest.raises(ValueError, match="choose another layout"):
        checkpoint.load(torch.float32, shard=RankShard(0, ParallelLayout(kvp=3, ep=3)))
    assert reads == []
