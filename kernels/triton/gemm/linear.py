"""The linear layer: a product with a transposed weight and its epilogue, in one kernel."""

from __future__ import annotations

from torch import Tensor

from .arguments import (
    require_activation,
    require_bias,
    require_like_output,
    require_weight,
    require_x,
)
from .product import product


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
    require_x("linear", x)
    require_weight("linear", "weight", weight, x)
    return checked_linear("linear", x, weight, bias, residual, activation)


def checked_linear(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """`linear` in the name of `op`, which has checked x and weight."""
    columns, depth = weight.shape
    require_activation(op, activation)
    require_bias(op, "bias", bias, x, columns)
    if residual is not None:
        require_like_output(op, "residual", residual, x, columns)
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
