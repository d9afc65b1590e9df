"""The gated linear layer: two products with one x, and their common epilogue."""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import (
    require_activation,
    require_bias,
    require_same_width,
    require_weight,
    require_x,
)
from .gated_product import gated_product


def gated_linear(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    """activation(x @ gate.T + gate_bias) * (x @ up.T + up_bias), accumulated in float32.

    Args:
        x: [..., K], float32, bfloat16 or float16; copied if its leading dimensions do not merge.
        gate, up: [N, K], x's dtype, any strides; contiguous rows are read 16 bytes at a time.
        gate_bias, up_bias: [N], x's dtype or float32.
        activation: none, relu, gelu, gelu_tanh, silu or tanh.

    Returns:
        [..., N] in x's dtype; contiguous.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, rank, shape or stride.
    """
    op = "gated_linear"
    require_gated(op, x, gate, up)
    return checked_gated(op, x, gate, up, gate_bias, up_bias, activation)


def gated_linear_for_backward(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    activation: str = "silu",
) -> tuple[Tensor, Tensor, Tensor]:
    """`gated_linear`, and both sums with their biases, [..., N] in float32: gate's and up's."""
    op = "gated_linear"  # which it is to whoever made the mistake
    require_gated(op, x, gate, up)
    shape = (*x.shape[:-1], gate.size(0))
    sums = x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)
    out = checked_gated(op, x, gate, up, gate_bias, up_bias, activation, *sums)
    return out, *sums


def require_gated(op: str, x: Tensor, gate: Tensor, up: Tensor) -> None:
    require_x(op, x)
    require_weight(op, "gate", gate, x)
    require_weight(op, "up", up, x)
    require_same_width(op, gate, up)


def checked_gated(
    op: str,
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    gate_sums: Tensor | None = None,
    up_sums: Tensor | None = None,
) -> Tensor:
    """`gated_linear` in the name of `op`, which has checked x, gate and up; keeps both sums where
    it is given where to."""
    columns, depth = gate.shape
    require_activation(op, activation)
    require_bias(op, "gate_bias", gate_bias, x, columns)
    require_bias(op, "up_bias", up_bias, x, columns)
    out = x.new_empty(*x.shape[:-1], columns)
    if out.numel() == 0:
        return out
    rows = out.numel() // columns
    gated_product(
        x.reshape(rows, depth),
        gate.mT,
        up.mT,
        out.view(rows, columns),
        gate_bias,
        up_bias,
        activation,
        gate_sums,
        up_sums,
    )
    return out
