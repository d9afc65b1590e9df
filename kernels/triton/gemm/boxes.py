"""Tensor descriptors, by which GPUs with tensor memory accelerators copy boxes of matrices.

They take three dimensions here, and coordinates of 32 bits.
"""

from __future__ import annotations

from torch import Tensor

from triton.tools.tensor_descriptor import TensorDescriptor

from .operand import MOST_32_BITS, Operand

ALIGNMENT = 16  # bytes, of all strides and of the base
MOST_STRIDE = 2**40  # bytes; each is less


def describable(operands: tuple[Operand, ...], out: Tensor, *extents: int) -> bool:
    """Whether operands of 16 bits and output have descriptors; `extents` are all of the product."""
    if min(extents) == 0 or max(extents) >= MOST_32_BITS:
        return False
    for tensor, _, inner, across, along in operands:
        size = tensor.element_size()
        strides = (size * inner, size * max(across, along))
        if size != 2 or min(across, along) != 1 or tensor.data_ptr() % ALIGNMENT:
            return False
        if any(stride % ALIGNMENT or stride >= MOST_STRIDE for stride in strides):
            return False
    return out.data_ptr() % ALIGNMENT == 0 == out.size(-1) * out.element_size() % ALIGNMENT


def of_operand(
    x: Operand, batches: int, extent: int, depth: int, block: int, block_k: int
) -> TensorDescriptor:
    """Of [batches, extent, K], or [batches, K, extent] where K is not contiguous."""
    if x.along == 1:
        shape, stride, box = (extent, depth), x.across, (block, block_k)
    else:
        shape, stride, box = (depth, extent), x.along, (block_k, block)
    batch_stride = x.inner or shape[0] * stride  # of a single matrix it leads nowhere
    return TensorDescriptor(x.tensor, [batches, *shape], [batch_stride, stride, 1], [1, *box])


def of_output(
    out: Tensor, matrices: int, rows: int, columns: int, block_m: int, block_n: int
) -> TensorDescriptor:
    """Of [matrices, rows, columns], contiguous."""
    strides = [rows * columns, columns, 1]
    return TensorDescriptor(out, [matrices, rows, columns], strides, [1, block_m, block_n])
