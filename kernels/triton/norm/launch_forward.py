"""The four norms: checks, the choice of a kernel and its launch."""

from __future__ import annotations

import math

from torch import Tensor

from .. import target
from . import tiles
from .forward import norm_long_row, norm_rows
from .problem import check_norm
from .rows import rows_of


def rms_norm(
    x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, weight_offset: float = 0.0
) -> Tensor:
    """x / sqrt(mean(x²) + eps) * (weight + offset) of each row; see `lanewise.rms_norm`.

    Args:
        x: [..., N], float32, bfloat16 or float16; any strides with the last 1.
        weight: [N], x's dtype or float32; None is one, to which no offset is added.

    Returns:
        A contiguous tensor of x's shape and dtype.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, shape, stride or number.
    """
    return normalise("rms_norm", x, None, None, weight, None, eps, weight_offset, False)[0]


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias of each row; see `lanewise.layer_norm`.

    Arguments, result and errors as of `rms_norm`; bias is like weight, and None zero.
    """
    return normalise("layer_norm", x, None, None, weight, bias, eps, 0.0, True)[0]


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`rms_norm` of the unrounded x + residual, and that sum rounded; residual is like x."""
    y, total = normalise("add_rms_norm", x, residual, None, weight, None, eps, weight_offset, False)
    assert total is not None
    return y, total


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """`layer_norm` of the unrounded x + residual, and that sum rounded; residual is like x."""
    y, total = normalise("add_layer_norm", x, residual, None, weight, bias, eps, 0.0, True)
    assert total is not None
    return y, total


def normalise(
    op: str,
    x: Tensor,
    residual: Tensor | None,
    after: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    weight_offset: float,
    centred: bool,
) -> tuple[Tensor, Tensor | None]:
    """(y, sum): norm(x + residual) + after, rounded once, and x + residual if there is one."""
    like_x = {"residual": residual, "after": after}
    check_norm(op, x, like_x, {"weight": weight, "bias": bias}, eps, weight_offset)
    y = x.new_empty(x.shape)
    total = None if residual is None else x.new_empty(x.shape)
    if y.numel() == 0:
        return y, total
    where = rows_of(x, residual, after)
    columns = x.size(-1)
    rows = math.prod(x.shape[:-1])
    tensors = (*where.tensors, weight, bias, y, total)
    architecture = target.of(x.device)
    tile = tiles.forward(columns, architecture)
    if tile is None:
        tile = tiles.long_forward(architecture)
        target.launch(
            norm_long_row,
            (rows,),
            *tensors,
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
        return y, total
    target.launch(
        norm_rows,
        (target.divide_up(rows, tile.rows),),
        *tensors,
        *where.strides,
        rows,
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
    return y, total
