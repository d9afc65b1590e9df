"""activation(a @ b + bias) + residual into a given tensor: chooses the kernel and launches it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import target
from . import tiles
from .tiled import tiled_product
from .tiles import GROUP_M, TILE_K_BYTES

Batch = list[tuple[int, int, int]]  # extent, stride of a, stride of b; outermost first


def product(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> None:
    """activation(a @ b + bias) + residual into `out`, accumulated in float32; checks nothing.

    Args:
        a: [..., M, K], float32, bfloat16 or float16, any strides.
        b: [..., K, N], a's dtype, any strides; leading dimensions broadcast to out's.
        out: [..., M, N], any floating dtype, contiguous.
        bias: [N], any floating dtype, stride 1.
        residual: [M, N], any floating dtype, last stride 1; with operands of two dimensions.
        activation: one of `lanewise.kernels.activation.ACTIVATIONS`.
    """
    if out.numel() == 0:
        return
    batch = _batch(a, b, out)
    if len(batch) > 2:  # as many dimensions as the kernel takes
        for i in range(out.size(0)):
            part_a, part_b = (t if t.dim() < out.dim() else t[i % t.size(0)] for t in (a, b))
            product(part_a, part_b, out[i], bias, residual, activation)
        return
    _launch(a, b, out, batch, bias, residual, activation)


def _batch(a: Tensor, b: Tensor, out: Tensor) -> Batch:
    """The leading dimensions of `out` but those of extent 1, merged where both operands allow."""
    batch: Batch = []
    for d in range(-out.dim(), -2):
        size = out.size(d)
        if size == 1:
            continue
        stride_a, stride_b = (t.stride(d) if -d <= t.dim() and t.size(d) > 1 else 0 for t in (a, b))
        if batch:
            outer, outer_a, outer_b = batch[-1]
            if (outer_a, outer_b) == (stride_a * size, stride_b * size):
                batch[-1] = (outer * size, stride_a, stride_b)
                continue
        batch.append((size, stride_a, stride_b))
    return batch


def _launch(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    batch: Batch,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> None:
    rows, columns = out.shape[-2:]
    depth = a.size(-1)
    a_strides, b_strides = a.stride()[-2:], b.stride()[-2:]
    if len(batch) == 1 and batch[0][2] == 0 and (rows == 1 or batch[0][1] == rows * a_strides[0]):
        # One b for all: the matrices of a are rows of one.
        count, stride, _ = batch.pop()
        a_strides = (stride if rows == 1 else a_strides[0], a_strides[1])
        rows *= count
    batches = math.prod(size for size, _, _ in batch)
    (_, outer_a, outer_b), (inner, inner_a, inner_b) = [(1, 0, 0), (1, 0, 0), *batch][-2:]

    architecture = target.of(a.device)
    tile = tiles.choose(rows, columns, a.element_size(), architecture)
    block_k = TILE_K_BYTES // a.element_size()
    vector = 16 // a.element_size()
    widest = max(
        tile.m * a_strides[0] + block_k * a_strides[1],
        tile.n * b_strides[1] + block_k * b_strides[0],
        tile.m * columns + tile.n,
        0 if residual is None else tile.m * residual.stride(0) + tile.n,
    )
    target.launch(
        tiled_product,
        (target.divide_up(rows, tile.m) * target.divide_up(columns, tile.n) * batches,),
        a,
        b,
        bias,
        residual,
        out,
        outer_a,
        inner_a,
        *a_strides,
        outer_b,
        inner_b,
        *b_strides,
        0 if residual is None else residual.stride(0),
        inner,
        batches,
        rows,
        columns,
        depth,
        target.divide_up(depth, block_k),
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=block_k,
        GROUP_M=GROUP_M,
        CHIPLETS=architecture.chiplets,
        VECTOR_M=vector if a_strides[0] == 1 and a_strides[1] != 1 and rows % vector == 0 else 1,
        VECTOR_N=vector if b_strides[1] == 1 and b_strides[0] != 1 and columns % vector == 0 else 1,
        WHOLE_K=depth % block_k == 0,
        WIDE=widest >= 2**31,
        ACTIVATION=activation,
        PRECISION=architecture.float32_dots if a.dtype == torch.float32 else "ieee",
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
