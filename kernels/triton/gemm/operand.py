"""An operand of a matrix product as launchers see it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..alignment import aligned

MOST_32_BITS = 2**31
VECTOR_BYTES = 16  # of one access


class Operand(NamedTuple):
    """A batch of matrices: rows of a, or columns of b, by K. All but the first are strides."""

    tensor: Tensor
    outer: int
    inner: int
    across: int  # from row to row of a, or column to column of b
    along: int  # K

    def reach(self, block: int, block_k: int) -> int:
        """Elements from the first of a tile to past its last."""
        return block * self.across + block_k * self.along

    def vector(self, extent: int) -> int:
        """How many of `extent` rows of a, or columns of b, are read in one access."""
        vector = VECTOR_BYTES // self.tensor.element_size()
        return vector if self.across == 1 != self.along and extent % vector == 0 else 1

    def aligned(self, extent: int, depth: int) -> bool:
        """Whether `extent` rows of a, or columns of b, are read 16 bytes at a time."""
        tensor, outer, inner, across, along = self
        if along == 1:
            return aligned((tensor,), outer, inner, across, depth)
        return self.vector(extent) > 1 and aligned((tensor,), outer, inner, along)
