"""The gradients of the norms: checks, the choice of kernels and their launches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import target
from . import tiles
from .backward import (
    norm_backward_long_row,
    norm_backward_rows,
    norm_partial_sums,
    sum_partials,
)
from .problem import check_norm
from .rows import Rows, rows_of


def rms_norm_backward(
    grad: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of x, which are the residual's too, and of the weight.

    Args:
        grad: x's shape and dtype, of the normalised rows; any strides with the last 1.
        grad_sum: likewise of x + residual, None for zero.
        x, residual, weight, eps, weight_offset: what the forward op was given.

    Returns:
        (grad_x like x, grad_weight like the weight, of no elements without one); contiguous.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, shape, stride or number.
    """
    op = "rms_norm_backward"
    return _gradients(op, grad, grad_sum, x, residual, weight, eps, weight_offset, False)[:2]


def layer_norm_backward(
    grad: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `rms_norm_backward`, and the gradient [N] of the bias, in float32."""
    return _gradients("layer_norm_backward", grad, grad_sum, x, residual, weight, eps, 0.0, True)


def _gradients(
    op: str,
    grad: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    centred: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    like_x = {"grad": grad, "grad_sum": grad_sum, "residual": residual}
    check_norm(op, x, like_x, {"weight": weight}, eps, weight_offset)
    columns = x.size(-1)
    grad_x = x.new_empty(x.shape)
    grad_weight = x.new_empty(0) if weight is None else weight.new_empty(columns)
    grad_bias = x.new_empty(columns if centred else 0, dtype=torch.float32)
    summed = [t for t in (grad_weight, grad_bias) if t.numel() > 0]
    if x.numel() == 0:
        for t in summed:
            t.zero_()
        return grad_x, grad_weight, grad_bias
    where = rows_of(x, residual, grad, grad_sum)
    run = _short if tiles.width(columns) <= tiles.WIDEST_BACKWARD else _long
    sums = run(where, weight, grad_x, len(summed), eps, weight_offset, centred)
    tile = tiles.sum_of_partials(target.of(x.device))
    for t, partial in zip(summed, sums, strict=True):
        target.launch(
            sum_partials,
            (target.divide_up(columns, tile.n),),
            partial,
            t,
            partial.size(0),
            columns,
            BLOCK_R=tile.rows,
            BLOCK_N=tile.n,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return grad_x, grad_weight, grad_bias


def _partials(
    x: Tensor, count: int, chunks: int, weight: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`count` matrices of partial sums [chunks, N], and which of them are the weight's and the
    bias's."""
    sums = x.new_empty(count, chunks, x.size(-1), dtype=torch.float32)
    of_weight = None if weight is None else sums[0]
    of_bias = sums[-1] if count > (weight is not None) else None
    return sums, of_weight, of_bias


def _short(
    where: Rows,
    weight: Tensor | None,
    grad_x: Tensor,
    count: int,
    eps: float,
    weight_offset: float,
    centred: bool,
) -> Tensor:
    """Of rows that a program holds whole."""
    columns, rows = grad_x.size(-1), math.prod(grad_x.shape[:-1])
    architecture = target.of(grad_x.device)
    tile = tiles.backward(columns, architecture)
    chunk = tiles.rows_of_program(rows, tile.rows, tile.resident * architecture.units)
    programs = target.divide_up(rows, chunk)
    sums, of_weight, of_bias = _partials(grad_x, count, programs, weight)
    target.launch(
        norm_backward_rows,
        (programs,),
        *where.tensors,
        weight,
        grad_x,
        of_weight,
        of_bias,
        *where.strides,
        rows,
        chunk,
        where.middle,
        where.inner,
        columns,
        eps,
        weight_offset,
        BLOCK_R=tile.rows,
        BLOCK_N=tile.n,
        NESTED=where.nested,
        CENTRED=centred,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return sums


def _long(
    where: Rows,
    weight: Tensor | None,
    grad_x: Tensor,
    count: int,
    eps: float,
    weight_offset: float,
    centred: bool,
) -> Tensor:
    """Of rows that are walked over by blocks; their moments are kept for the partial sums."""
    columns, rows = grad_x.size(-1), math.prod(grad_x.shape[:-1])
    architecture = target.of(grad_x.device)
    tile = tiles.long_backward(architecture)
    moments = grad_x.new_empty(rows, 2, dtype=torch.float32)
    target.launch(
        norm_backward_long_row,
        (rows,),
        *where.tensors,
        weight,
        grad_x,
        moments,
        *where.strides,
        where.middle,
        where.inner,
        columns,
        eps,
        weight_offset,
        BLOCK_N=tile.n,
        NESTED=where.nested,
        CENTRED=centred,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    tile = tiles.partial_sums(architecture)
    blocks = target.divide_up(columns, tile.n)
    most = target.divide_up(tile.resident * architecture.units, blocks)
    chunk = tiles.rows_of_program(rows, tile.rows, most)
    chunks = target.divide_up(rows, chunk) if count else 0
    sums, of_weight, of_bias = _partials(grad_x, count, chunks, weight)
    if count == 0:
        return sums
    target.launch(
        norm_partial_sums,
        (blocks, chunks),
        *where.tensors[:3],
        moments,
        of_weight,
        of_bias,
        *where.strides[:9],
        rows,
        chunk,
        where.middle,
        where.inner,
        columns,
        BLOCK_R=tile.rows,
        BLOCK_N=tile.n,
        NESTED=where.nested,
        CENTRED=centred,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return sums
