"""Tensors in FP8 (E4M3) with a scale for each tile, as the scaled GEMM of torch reads them; here in plain torch.

The scaling of DeepSeek-V3 (arXiv 2412.19437) and Nemotron Nano v2 (arXiv 2508.14444): activations and gradients in
tiles of 1x128 along the dimension that a product sums over, weights in blocks of 128x128. Scales are powers of two, as
Transformer Engine's are for this recipe: dividing by one is exact, so a value is rounded once, to the same three bits
of mantissa whichever way its tile lies, and every implementation gives the same bits (:mod:`models.triton_fp8` has the
kernel).

Dimensions are filled up with zeros: those summed over to four blocks where a weight is one side, since torch's GEMM
reads its scales in rows of four (and which stride it asks of another number of blocks depends on its version), the
others to 16. The 9B's 15,680 inputs become 15,872, 1.2% more work; at most 511 are added.

Shapes: R rows (tokens or a weight's outputs), C columns; a product sums over S.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 128
"""Values along a tile."""
BLOCKS = 4
"""A weight's summed dimension is a multiple of this many blocks."""
SIDE = 16
"""Other dimensions are multiples of this."""
LARGEST = 448.0
"""Of E4M3."""
LEAST = 27
"""The exponent field of the smallest scale, 2^-100: products of two scales stay normal numbers."""


@dataclass(frozen=True)
class Tiles:
    """One side of a scaled GEMM: ``values * scale`` is what they stand for."""

    values: Tensor
    """(R, S) in float8_e4m3fn, S filled up with zeros."""
    scale: Tensor
    """(R, S / 128), its columns adjacent in memory, or for blocks (R / 128, S / 128), its rows adjacent; float32."""

    def dequantized(self) -> Tensor:
        """(R, S) in float64, which holds every value exactly."""
        values, scale = self.values.double(), self.scale.double()
        if len(scale) != len(values):
            scale = scale.repeat_interleave(TILE, 0)[: len(values)]
        return values * scale.repeat_interleave(TILE, 1)


def rounded_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def scales(largest: Tensor) -> tuple[Tensor, Tensor]:
    """The scale that brings magnitudes up to ``largest`` (float32) into E4M3's range, a power of two, and its inverse.

    An infinite tile gets an infinite scale: whatever it enters is not finite either, as without FP8.
    """
    bits = largest.view(torch.int32)
    # 448 is 1.75 x 2^8: a mantissa beyond 1.75 carries into the exponent
    exponent = ((bits.clamp(max=0x7F000000) + 0x1FFFFF) >> 23).sub(8).clamp(min=LEAST)
    finite = bits < 0x7F800000
    scale = torch.where(finite, (exponent << 23).view(torch.float32), torch.inf)
    return scale, torch.where(finite, ((254 - exponent) << 23).view(torch.float32), 0.0)


def _rounded(values: Tensor) -> Tensor:
    return values.to(torch.float8_e4m3fn)


def along_rows(x_RC: Tensor) -> Tiles:
    """Tiles along C: an input of a product, or the gradient of its output. R and C are filled up."""
    rows, columns = x_RC.shape
    more = (0, rounded_up(columns, TILE * BLOCKS) - columns, 0, rounded_up(rows, TILE) - rows)
    return _in_tiles(F.pad(x_RC.float(), more))


def along_columns(x_RC: Tensor) -> Tiles:
    """Tiles along R, transposed, (C, R): either side of a weight's gradient, which sums over tokens. Both are filled
    up."""
    rows, columns = x_RC.shape
    more = (0, rounded_up(columns, SIDE) - columns, 0, rounded_up(rows, TILE) - rows)
    return _in_tiles(F.pad(x_RC.float(), more).T)


def _in_tiles(x_RS: Tensor) -> Tiles:
    tiles = x_RS.unflatten(1, (-1, TILE))
    scale, inverse = scales(tiles.abs().amax(2))
    return Tiles(_rounded(tiles * inverse.unsqueeze(2)).flatten(1), scale.T.contiguous().T)


def in_blocks(weight_RC: Tensor) -> tuple[Tiles, Tiles]:
    """A weight in blocks of 128x128, as it is, to be summed over C, and transposed, (C, R), to be summed over R."""
    rows, columns = weight_RC.shape
    more = [rounded_up(size, TILE * BLOCKS) - size for size in (columns, rows)]
    blocks = F.pad(weight_RC.float(), (0, more[0], 0, more[1])).unflatten(1, (-1, TILE)).unflatten(0, (-1, TILE))
    scale, inverse = scales(blocks.abs().amax((1, 3)))
    values = _rounded(blocks * inverse[:, None, :, None]).flatten(2).flatten(0, 1)
    transposed = values[:, : rounded_up(columns, SIDE)].T.contiguous()
    return blocks_of(values[: rounded_up(rows, SIDE)], transposed, scale)


def blocks_of(values_RS: Tensor, transposed_CS: Tensor, scale: Tensor) -> tuple[Tiles, Tiles]:
    """A weight and its transpose, of the scales of all blocks, filled up in both directions."""
    across = scale.T.contiguous()
    return (
        Tiles(values_RS, scale[: rounded_up(len(values_RS), TILE) // TILE]),
        Tiles(transposed_CS, across[: rounded_up(len(transposed_CS), TILE) // TILE]),
    )
