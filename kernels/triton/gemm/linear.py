"""The linear layer: a product with a transposed weight and its epilogue, in one kernel."""

from __future__ import annotations

from torch import Tensor

from .. import check
from ..activation import ACTIVATIONS
from .product import product


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str
) -> None:
    op = "linear"
    check.require_floating(op, "x", x)
    check.require(x.dim() >= 1, op, "x must have at least 1 dimension, got shape []")
    check.require_extents(op, "x", x)
    check.require_device(op, "weight", weight, x.device)
    check.require_dtype(op, "weight", weight, x.dtype)
    check.require_rank(op, "weight", weight, 2)
    check.require_extents(op, "weight", weight)
    columns, depth = weight.shape
    check.require(
        depth == x.size(-1),
        op,
        f"weight has {depth} input features, which is not x's {x.size(-1)}",
    )
    check.require(
        activation in ACTIVATIONS,
        op,
        f"activation must be one of {', '.join(ACTIVATIONS)}, got '{activation}'",
    )
    if bias is not None:
        check.require_device(op, "bias", bias, x.device)
        check.require_own_or_float(op, "bias", bias, x.dtype)
        check.require_rank(op, "bias", bias, 1)
        check.require(
            bias.size(0) == columns,
            op,
            f"bias has {bias.size(0)} elements, which is not the {columns} output features",
        )
        check.require_unit_stride(op, "bias", bias)
    if residual is not None:
        check.require_device(op, "residual", residual, x.device)
        check.require_own_or_float(op, "residual", residual, x.dtype)
        shape = [*x.shape[:-1], columns]
        check.require(
            list(residual.shape) == shape,
            op,
            f"residual must have the output's shape {shape}, got {list(residual.shape)}",
        )
        check.require_unit_stride(op, "residual", residual)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """activation(x @ weight.T + bias) + residual, accumulated in float32.

    Args:
        x: [..., K], float32, bfloat16 or float16; copied if its leading dimensions do not merge.
        weight: [N, K], x's dtype, any strides; contiguous rows are read 16 bytes at a time.
        bias: [N], x's dtype or float32.
        residual: [..., N], x's dtype or float32, innermost stride 1.
        activation: none, relu, gelu, gelu_tanh, silu or tanh.

    Returns:
        [..., N] in the residual's dtype, or in x's without one; contiguous.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, rank, shape or stride.
    """
    _check(x, weight, bias, residual, activation)
    columns, depth = weight.shape
    like = x if residual is None else residual
    out = like.new_empty(*x.shape[:-1], columns)
    if out.numel() == 0:
        return out
    rows = out.numel() // columns
    product(
        x.reshape(rows, depth),
        weight.mT,
        out.view(rows, columns),
        bias,
        None if residual is None else residual.reshape(rows, columns),
        activation,
    )
    return out
