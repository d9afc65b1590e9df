"""Whether a kernel may read 16 bytes at a time: the one rule that launchers choose their tiles by.

Rows that start anywhere are read element by element, and each element's address takes registers
that a tile made for whole vectors does not have.
"""

from __future__ import annotations

from torch import Tensor

DIVISOR = 16


def aligned(tensors: tuple[Tensor, ...], *numbers: int) -> bool:
    """Whether the compiler knows that rows of `tensors` start and end on 16 bytes.

    It is told of an address or a number only whether it is a multiple of 16: of bytes, or of
    elements. A stride of 8 elements of 16 bits is to it a stride of any size.

    Args:
        numbers: strides, but for those of neighbours in memory, and the extents of rows.
    """
    bits = 0
    for tensor in tensors:
        bits |= tensor.data_ptr()
    for number in numbers:
        bits |= number
    return bits % DIVISOR == 0
