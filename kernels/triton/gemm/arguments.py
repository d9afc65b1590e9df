"""Checks of the arguments that the linear ops share, in the words of csrc/gemm/op.cpp."""

from __future__ import annotations

from torch import Tensor

from .. import check
from ..activation import ACTIVATIONS


def require_x(op: str, x: Tensor) -> None:
    check.require_floating(op, "x", x)
    check.require(x.dim() >= 1, op, "x must have at least 1 dimension, got shape []")
    check.require_extents(op, "x", x)


def require_weight(op: str, name: str, weight: Tensor, x: Tensor, depth: int | None = None) -> None:
    """Of a weight [out, in] of x's dtype, for rows of `depth`, which are x's own by default."""
    depth = x.size(-1) if depth is None else depth
    check.require_device(op, name, weight, x.device)
    check.require_dtype(op, name, weight, x.dtype)
    check.require_rank(op, name, weight, 2)
    check.require_extents(op, name, weight)
    check.require(
        weight.size(1) == depth,
        op,
        f"{name} has {weight.size(1)} input features, which is not x's {depth}",
    )


def require_same_width(op: str, gate: Tensor, up: Tensor) -> None:
    check.require(
        gate.size(0) == up.size(0),
        op,
        f"up has {up.size(0)} output features, which is not gate's {gate.size(0)}",
    )


def require_activation(op: str, activation: str) -> None:
    check.require(
        activation in ACTIVATIONS,
        op,
        f"activation must be one of {', '.join(ACTIVATIONS)}, got '{activation}'",
    )


def require_bias(op: str, name: str, bias: Tensor | None, x: Tensor, columns: int) -> None:
    if bias is None:
        return
    check.require_device(op, name, bias, x.device)
    check.require_own_or_float(op, name, bias, x.dtype)
    check.require_rank(op, name, bias, 1)
    check.require(
        bias.size(0) == columns,
        op,
        f"{name} has {bias.size(0)} elements, which is not the {columns} output features",
    )
    check.require_unit_stride(op, name, bias)


def require_like_output(op: str, name: str, given: Tensor, x: Tensor, columns: int) -> None:
    """Of a residual, and of an output's gradient."""
    check.require_device(op, name, given, x.device)
    check.require_own_or_float(op, name, given, x.dtype)
    shape = [*x.shape[:-1], columns]
    check.require(
        list(given.shape) == shape,
        op,
        f"{name} must have the output's shape {shape}, got {list(given.shape)}",
    )
    check.require_unit_stride(op, name, given)
