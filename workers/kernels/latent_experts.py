"""Routed experts in the latent dimension: two grouped products, and one sum for each token.

Exists because the tensor form runs two products for every expert that is used: 1024 launches in a
layer of Nemotron 3 Super, for a few rows each. Here (token, expert) pairs are sorted by expert and
cut into tiles of one expert; one kernel computes relu(x up^T)^2 for all tiles, one multiplies by
down and by the routing weight, and one adds up the k rows of each token, in the order in which the
router named the experts. No two programs write to the same place, so there are no atomics and a
batch always gives the same bits. The number of tiles is bounded by shapes alone, so the CPU never
waits for the router's choice; tiles beyond the last end at once.

Bytes moved: 2 m l e for each expert that is used (all of them, once some hundred tokens choose),
and per token l e + k (l + 2 m) e + 8 k l + l e: the rows of x, the hidden layer written and read,
float32 results written and read, the sum. t tokens, k experts per token, E experts, l latent,
m hidden size of an expert, e bytes an element.
"""

# ruff: noqa: N803 - compile-time constants in capitals, as is usual in Triton

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from workers.kernels.language import blocks, kernel, power_of_two

# What hidden layers and results of one pass may take; more tokens run in several passes.
_SCRATCH_BYTES = 1 << 30
_LEAST_TILE = 16  # of a matrix product on tensor cores


@dataclass(frozen=True, slots=True)
class _Plan:
    """Pairs sorted by expert, in tiles of one expert each; pair p is choice p % k of token p // k.

    Attributes:
        order: int64 [pairs], the pair in each sorted row.
        bounds: int64 [E + 1], the first sorted row of each expert, and the number of rows.
        experts: int64 [tiles], the expert of each tile; E for tiles that are not needed.
        starts: int64 [tiles], the first sorted row of each tile.
    """

    order: Tensor
    bounds: Tensor
    experts: Tensor
    starts: Tensor

    @classmethod
    def of(cls, indices: Tensor, experts: int, rows: int) -> _Plan:
        """Tiles of up to `rows` pairs of `indices` [t, k]; only operations that never wait."""
        device = indices.device
        named, order = torch.sort(indices.flatten(), stable=True)
        bounds = torch.searchsorted(named, torch.arange(experts + 1, device=device))
        tiles = (bounds.diff() + rows - 1) // rows
        ends = tiles.cumsum(0)
        numbers = torch.arange(most_tiles(indices.numel(), experts, rows), device=device)
        owners = torch.searchsorted(ends, numbers, right=True)
        known = owners.clamp(max=experts - 1)
        return cls(order, bounds, owners, bounds[known] + (numbers - (ends - tiles)[known]) * rows)


def most_tiles(pairs: int, experts: int, rows: int) -> int:
    """Tiles that suffice however the pairs spread: every expert may leave one tile unfilled."""
    return min(pairs, min(pairs, experts) + pairs // rows)


@kernel
def _up(
    x: tl.tensor,
    weights: tl.tensor,
    hidden: tl.tensor,
    order: tl.tensor,
    bounds: tl.tensor,
    tile_experts: tl.tensor,
    tile_starts: tl.tensor,
    experts: int,
    chosen: int,
    size: int,
    narrow: int,
    x_stride: int,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    """relu(x up^T)^2 for one tile of pairs and COLUMNS of the m hidden units."""
    columns = tl.cdiv(size, COLUMNS)
    tile = tl.program_id(0) // columns
    expert = tl.load(tile_experts + tile)
    if expert >= experts:
        return
    row = tl.load(tile_starts + tile) + tl.arange(0, ROWS)
    used = row < tl.load(bounds + expert + 1)
    token = tl.load(order + row, mask=used, other=0) // chosen
    unit = (tl.program_id(0) % columns) * COLUMNS + tl.arange(0, COLUMNS)
    in_units = unit < size
    matrix = weights + expert.to(tl.int64) * size * narrow
    result = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, narrow, INNER):
        inner = first + tl.arange(0, INNER)
        inside = inner < narrow
        left = tl.load(
            x + token[:, None] * x_stride + inner[None, :],
            mask=used[:, None] & inside[None, :],
            other=0.0,
        )
        right = tl.load(
            matrix + unit[None, :] * narrow + inner[:, None],
            mask=in_units[None, :] & inside[:, None],
            other=0.0,
        )
        result = tl.dot(left, right, result, input_precision="ieee")
    # The product is rounded to the model's type before it is squared, as it is elsewhere.
    result = tl.maximum(result, 0.0).to(hidden.dtype.element_ty).to(tl.float32)
    tl.store(
        hidden + row[:, None] * size + unit[None, :],
        (result * result).to(hidden.dtype.element_ty),
        mask=used[:, None] & in_units[None, :],
    )


@kernel
def _down(
    hidden: tl.tensor,
    weights: tl.tensor,
    scales: tl.tensor,
    results: tl.tensor,
    order: tl.tensor,
    bounds: tl.tensor,
    tile_experts: tl.tensor,
    tile_starts: tl.tensor,
    experts: int,
    size: int,
    narrow: int,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    """hidden down times the routing weight, for one tile of pairs and COLUMNS of the l outputs."""
    columns = tl.cdiv(narrow, COLUMNS)
    tile = tl.program_id(0) // columns
    expert = tl.load(tile_experts + tile)
    if expert >= experts:
        return
    row = tl.load(tile_starts + tile) + tl.arange(0, ROWS)
    used = row < tl.load(bounds + expert + 1)
    pair = tl.load(order + row, mask=used, other=0)
    output = (tl.program_id(0) % columns) * COLUMNS + tl.arange(0, COLUMNS)
    in_outputs = output < narrow
    matrix = weights + expert.to(tl.int64) * size * narrow
    result = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, size, INNER):
        inner = first + tl.arange(0, INNER)
        inside = inner < size
        left = tl.load(
            hidden + row[:, None] * size + inner[None, :],
            mask=used[:, None] & inside[None, :],
            other=0.0,
        )
        right = tl.load(
            matrix + inner[:, None] * narrow + output[None, :],
            mask=inside[:, None] & in_outputs[None, :],
            other=0.0,
        )
        result = tl.dot(left, right, result, input_precision="ieee")
    scale = tl.load(scales + pair, mask=used, other=0.0)
    tl.store(
        results + pair[:, None] * narrow + output[None, :],
        result * scale[:, None],
        mask=used[:, None] & in_outputs[None, :],
    )


@kernel
def _add(
    results: tl.tensor, out: tl.tensor, chosen: int, narrow: int, COLUMNS: tl.constexpr
) -> None:
    """The sum of one token's `chosen` rows."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < narrow
    total = tl.zeros([COLUMNS], tl.float32)
    for choice in range(chosen):
        place = (token * chosen + choice) * narrow + column
        total += tl.load(results + place, mask=inside, other=0.0)
    tl.store(out + token * narrow + column, total.to(out.dtype.element_ty), mask=inside)


def run_experts(x: Tensor, indices: Tensor, scales: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """sum_i w_i relu(x up_i^T)^2 down_i over the experts that each token chose.

    Args:
        x: [t, l], float32 or bfloat16, rows contiguous.
        indices: int64 [t, k], the experts of each token.
        scales: float32 [t, k], their weights.
        up: [E, m, l] in the dtype of x, contiguous.
        down: [E, m, l], likewise.

    Returns:
        [t, l] in the dtype of x.

    Raises:
        ValueError: shapes, types or strides do not fit together.
    """
    _check(x, indices, scales, up, down)
    tokens, chosen = indices.shape
    _, size, narrow = up.shape
    out = torch.empty(tokens, narrow, dtype=x.dtype, device=x.device)
    token_bytes = chosen * (size * x.element_size() + narrow * 4)
    passes = max(_SCRATCH_BYTES // token_bytes, 1)
    for first in range(0, tokens, passes):
        part = slice(first, first + passes)
        _run(x[part], indices[part].contiguous(), scales[part].contiguous(), up, down, out[part])
    return out


def _run(x: Tensor, indices: Tensor, scales: Tensor, up: Tensor, down: Tensor, out: Tensor) -> None:
    pairs, chosen = indices.numel(), indices.shape[1]
    experts, size, narrow = up.shape
    rows = tile_rows(pairs, experts, x.dtype)
    plan = _Plan.of(indices, experts, rows)
    hidden = torch.empty(pairs, size, dtype=x.dtype, device=x.device)
    results = torch.empty(pairs, narrow, dtype=torch.float32, device=x.device)
    where = (plan.order, plan.bounds, plan.experts, plan.starts)
    columns, inner = 64, 64 if x.dtype == torch.bfloat16 else 32
    shape = {"ROWS": rows, "COLUMNS": columns, "INNER": inner, "num_warps": 4, "num_stages": 3}
    _up[(len(plan.experts) * blocks(size, columns),)](
        x, up, hidden, *where, experts, chosen, size, narrow, x.stride(0), **shape
    )
    _down[(len(plan.experts) * blocks(narrow, columns),)](
        hidden, down, scales, results, *where, experts, size, narrow, **shape
    )
    width = min(power_of_two(narrow), 1024)
    _add[(len(x), blocks(narrow, width))](results, out, chosen, narrow, COLUMNS=width, num_warps=4)


def tile_rows(pairs: int, experts: int, dtype: torch.dtype) -> int:
    """Rows of a tile: what an expert gets on average, within what a product can use."""
    # Products in full float32 do not run on tensor cores and need their operands in registers.
    most = 128 if dtype == torch.bfloat16 else 32
    return min(max(power_of_two(blocks(pairs, experts)), _LEAST_TILE), most)


def bytes_moved(indices: Tensor, size: int, narrow: int, element: int) -> int:
    """Bytes of one call with these `indices` [t, k] and elements of `element` bytes."""
    tokens, chosen = indices.shape
    used = int(indices.flatten().bincount().count_nonzero())
    token = 2 * narrow * element + chosen * (narrow + 2 * size) * element + 8 * chosen * narrow
    return used * 2 * size * narrow * element + tokens * token


def _check(x: Tensor, indices: Tensor, scales: Tensor, up: Tensor, down: Tensor) -> None:
    if x.dtype not in (torch.float32, torch.bfloat16) or not x.dtype == up.dtype == down.dtype:
        raise ValueError(
            f"x, up and down must all be float32 or all bfloat16: {x.dtype}, {up.dtype}, "
            f"{down.dtype}"
        )
    if up.ndim != 3 or up.shape != down.shape or x.shape != (len(indices), up.shape[2]):
        raise ValueError(
            f"x {list(x.shape)}, up {list(up.shape)} and down {list(down.shape)} must be "
            f"[{len(indices)}, l], [E, m, l] and [E, m, l]"
        )
    if indices.shape != scales.shape or scales.dtype != torch.float32:
        raise ValueError(
            f"weights must be float32 {list(indices.shape)}, not {scales.dtype} "
            f"{list(scales.shape)}"
        )
    if x.stride(1) != 1 or not (up.is_contiguous() and down.is_contiguous()):
        raise ValueError("up, down and the rows of x must be contiguous")
