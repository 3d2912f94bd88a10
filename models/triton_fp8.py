"""The quantization of :mod:`models.fp8_tiles` in one pass over memory, as a Triton kernel; CUDA only.

A program takes a square of 128x128 values: its rows are tiles along rows, its columns tiles along columns, all of it a
weight's block. What is wanted of them is written in the same pass, transposed where a product needs it so.
"""

# mypy: disable-error-code="no-untyped-def"
import torch
import triton
import triton.language as tl
from torch import Tensor

from nanoalign.models import fp8_tiles
from nanoalign.models.fp8_tiles import BLOCKS, SIDE, TILE, Tiles, blocks_of, rounded_up

WARPS = 8
"""That run a program, which holds 16,384 values."""
LEAST = tl.constexpr(fp8_tiles.LEAST)


@triton.jit
def _scales(largest):
    """:func:`models.fp8_tiles.scales`."""
    bits = largest.to(tl.int32, bitcast=True)
    exponent = tl.maximum(((tl.minimum(bits, 0x7F000000) + 0x1FFFFF) >> 23) - 8, LEAST)
    finite = bits < 0x7F800000
    scale = tl.where(finite, (exponent << 23).to(tl.float32, bitcast=True), float("inf"))
    return scale, tl.where(finite, ((254 - exponent) << 23).to(tl.float32, bitcast=True), 0.0)


@triton.jit
def _quantize(
    x, by_row, row_scale, by_column, column_scale, rows, columns, stride,
    all_rows, all_columns, some_rows, some_columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WHOLE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """``all`` sizes are of tiles, ``some`` those of the first dimensions of what is written."""
    at = tl.arange(0, TILE)
    i, j = tl.program_id(1).to(tl.int64) * TILE + at, tl.program_id(0).to(tl.int64) * TILE + at
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    value = tl.load(x + i[:, None] * stride + j[None, :], mask=inside, other=0.0).to(tl.float32)
    size = tl.abs(value)
    if WHOLE:
        scale, inverse = _scales(tl.max(tl.max(size, axis=1), axis=0))
        rounded = (value * inverse).to(tl.float8e4nv)
        tl.store(by_row + i[:, None] * all_columns + j[None, :], rounded, mask=(i < some_rows)[:, None])
        tl.store(by_column + j[:, None] * all_rows + i[None, :], tl.trans(rounded), mask=(j < some_columns)[:, None])
        tl.store(row_scale + tl.program_id(1) * (all_columns // TILE) + tl.program_id(0), scale)
    if ROWS:
        scale, inverse = _scales(tl.max(size, axis=1))
        rounded = (value * inverse[:, None]).to(tl.float8e4nv)
        tl.store(by_row + i[:, None] * all_columns + j[None, :], rounded)
        tl.store(row_scale + tl.program_id(0) * all_rows + i, scale)
    if COLUMNS:
        scale, inverse = _scales(tl.max(size, axis=0))
        rounded = (value * inverse[None, :]).to(tl.float8e4nv)
        tl.store(by_column + j[:, None] * all_rows + i[None, :], tl.trans(rounded), mask=(j < some_columns)[:, None])
        tl.store(column_scale + tl.program_id(1).to(tl.int64) * some_columns + j, scale, mask=j < some_columns)


def quantize(x_RC: Tensor, by_rows: bool = True, by_columns: bool = False) -> tuple[Tiles | None, Tiles | None]:
    """:func:`models.fp8_tiles.along_rows` and :func:`models.fp8_tiles.along_columns`, those that are wanted."""
    x_RC = x_RC if x_RC.stride(1) == 1 else x_RC.contiguous()
    rows, columns = x_RC.shape
    all_rows, all_columns = rounded_up(rows, TILE), rounded_up(columns, TILE * (BLOCKS if by_rows else 1))
    some_columns = rounded_up(columns, SIDE)
    row = column = None
    nothing = x_RC  # a pointer that is not followed
    if by_rows:
        row = Tiles(_fp8(x_RC, all_rows, all_columns), _scale(x_RC, all_columns // TILE, all_rows).T)
    if by_columns:
        column = Tiles(_fp8(x_RC, some_columns, all_rows), _scale(x_RC, all_rows // TILE, some_columns).T)
    _quantize[(all_columns // TILE, all_rows // TILE)](
        x_RC,
        row.values if row else nothing, row.scale if row else nothing,
        column.values if column else nothing, column.scale if column else nothing,
        rows, columns, x_RC.stride(0), all_rows, all_columns, all_rows, some_columns,
        by_rows, by_columns, False, TILE, num_warps=WARPS,
    )  # fmt: skip
    return row, column


def in_blocks(weight_RC: Tensor) -> tuple[Tiles, Tiles]:
    """:func:`models.fp8_tiles.in_blocks`."""
    weight_RC = weight_RC if weight_RC.stride(1) == 1 else weight_RC.contiguous()
    rows, columns = weight_RC.shape
    all_rows, all_columns = (rounded_up(size, TILE * BLOCKS) for size in (rows, columns))
    some_rows, some_columns = (rounded_up(size, SIDE) for size in (rows, columns))
    values, transposed = _fp8(weight_RC, some_rows, all_columns), _fp8(weight_RC, some_columns, all_rows)
    scale = _scale(weight_RC, all_rows // TILE, all_columns // TILE)
    _quantize[(all_columns // TILE, all_rows // TILE)](
        weight_RC, values, scale, transposed, scale, rows, columns, weight_RC.stride(0), all_rows, all_columns,
        some_rows, some_columns, False, False, True, TILE, num_warps=WARPS,
    )  # fmt: skip
    return blocks_of(values, transposed, scale)


def _fp8(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float8_e4m3fn, device=like.device)


def _scale(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)
