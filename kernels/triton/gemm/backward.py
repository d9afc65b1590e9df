"""Gradients of the linear layers: through the activation, then by two products and a sum.

The gradient with respect to the sums is rounded to x's dtype, that of its products' operands, once.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl

from .. import check, target
from ..activation import activate, activation_gradient
from .arguments import (
    require_activation,
    require_bias,
    require_like_output,
    require_weight,
    require_x,
)
from .backward_tiles import GATED_GRADIENT
from .column_sum import sum_rows
from .gated import require_gated
from .product import product


def linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `linear` with respect to x, weight and bias.

    What the activation saw is computed again, by the kernel that multiplies `grad` by the
    activation's derivative there.

    Args:
        grad: [..., N], of the output, x's dtype or float32, innermost stride 1.
        x, weight, bias, activation: as `linear` had them.
        needs_x, needs_weight, needs_bias: which gradients to make; the others are empty.

    Returns:
        Of x, weight and bias: their shapes and dtypes, contiguous; a bias that was not given has
        x's dtype.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, rank, shape or stride.
    """
    op = "linear_backward"
    require_x(op, x)
    require_weight(op, "weight", weight, x)
    columns, depth = weight.shape
    require_like_output(op, "grad", grad, x, columns)
    require_activation(op, activation)
    require_bias(op, "bias", bias, x, columns)

    rows = x.shape[:-1].numel()
    x_rows, d_out = x.reshape(rows, depth), grad.reshape(rows, columns)
    if activation == "none":
        d_sums = d_out.to(x.dtype)
    else:
        d_sums = x.new_empty(rows, columns)
        product(x_rows, weight.mT, d_sums, bias, d_out, f"{activation}'")
    grad_x = x.new_empty(x.shape if needs_x else (0,))
    if needs_x:
        product(d_sums, weight, grad_x.view(rows, depth))
    return (
        grad_x,
        _weight_gradient(d_sums, x_rows, needs_weight),
        # An activation that does nothing leaves what is summed as precise as it came.
        _bias_gradient(d_out if activation == "none" else d_sums, bias, x, needs_bias),
    )


def _weight_gradient(d_sums: Tensor, x: Tensor, needed: bool) -> Tensor:
    out = x.new_empty((d_sums.size(1), x.size(1)) if needed else (0,))
    if needed:
        product(d_sums.mT, x, out)
    return out


def _bias_gradient(d_sums: Tensor, bias: Tensor | None, x: Tensor, needed: bool) -> Tensor:
    if not needed:
        return x.new_empty((0,))
    out = (x if bias is None else bias).new_empty((d_sums.size(1),))
    sum_rows(d_sums, out)
    return out


@triton.jit(do_not_specialize=["len_m"])
def gated_gradient(
    p_grad, p_gate_sums, p_up_sums, p_d_gate, p_d_up, stride_gm, len_m, len_n,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Of both sums from that of activation(gate's) · up's; all but `p_grad` are contiguous."""
    blocks_n = tl.cdiv(len_n, BLOCK_N)
    first_m = (tl.program_id(0) // blocks_n).to(tl.int64) * BLOCK_M
    first_n = (tl.program_id(0) % blocks_n).to(tl.int64) * BLOCK_N
    o_m, o_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    mask = (o_m < len_m - first_m)[:, None] & (o_n < len_n - first_n)[None, :]
    if WIDE:
        o_m = o_m.to(tl.int64)
    o_tile = (o_m * len_n)[:, None] + o_n[None, :]  # [BLOCK_M, BLOCK_N]
    first = first_m * len_n + first_n
    p_grad += first_m * stride_gm + first_n
    b_grad = tl.load(p_grad + ((o_m * stride_gm)[:, None] + o_n[None, :]), mask=mask, other=0.0)
    b_grad = b_grad.to(tl.float32)
    b_gate = tl.load(p_gate_sums + first + o_tile, mask=mask, other=0.0)
    b_up = tl.load(p_up_sums + first + o_tile, mask=mask, other=0.0)
    b_d_gate = b_grad * b_up * activation_gradient(b_gate, ACTIVATION)
    b_d_up = b_grad * activate(b_gate, ACTIVATION)
    tl.store(p_d_gate + first + o_tile, b_d_gate.to(p_d_gate.dtype.element_ty), mask=mask)
    tl.store(p_d_up + first + o_tile, b_d_up.to(p_d_up.dtype.element_ty), mask=mask)


def gated_linear_backward(
    grad: Tensor,
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_sums: Tensor,
    up_sums: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `gated_linear` with respect to x, gate, up, gate_bias and up_bias.

    Args:
        grad: [..., N], of the output, x's dtype or float32, innermost stride 1.
        x, gate, up, gate_bias, up_bias, activation: as `gated_linear` had them.
        gate_sums, up_sums: [..., N], float32, contiguous, from `gated_linear_for_backward`; kept.
        needs_x, needs_weight, needs_bias: which gradients to make; the others are empty.

    Returns:
        Of x, gate, up and both biases: their shapes and dtypes, contiguous; a bias that was not
        given has x's dtype.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, rank, shape or stride.
    """
    op = "gated_linear_backward"
    require_gated(op, x, gate, up)
    columns, depth = gate.shape
    require_like_output(op, "grad", grad, x, columns)
    require_activation(op, activation)
    require_bias(op, "gate_bias", gate_bias, x, columns)
    require_bias(op, "up_bias", up_bias, x, columns)
    _require_sums(op, "gate_sums", gate_sums, x, columns)
    _require_sums(op, "up_sums", up_sums, x, columns)

    rows = x.shape[:-1].numel()
    x_rows = x.reshape(rows, depth)
    d_gate, d_up = x.new_empty(rows, columns), x.new_empty(rows, columns)
    _through_gate(grad.reshape(rows, columns), gate_sums, up_sums, d_gate, d_up, activation)
    grad_x = x.new_empty(x.shape if needs_x else (0,))
    if needs_x:  # both halves are summed in float32 and rounded once
        half = x.new_empty(rows, depth, dtype=torch.float32)
        product(d_gate, gate, half)
        product(d_up, up, grad_x.view(rows, depth), None, half)
    return (
        grad_x,
        _weight_gradient(d_gate, x_rows, needs_weight),
        _weight_gradient(d_up, x_rows, needs_weight),
        _bias_gradient(d_gate, gate_bias, x, needs_bias),
        _bias_gradient(d_up, up_bias, x, needs_bias),
    )


def _require_sums(op: str, name: str, sums: Tensor, x: Tensor, columns: int) -> None:
    check.require_device(op, name, sums, x.device)
    check.require_dtype(op, name, sums, torch.float32)
    shape = [*x.shape[:-1], columns]
    check.require(
        list(sums.shape) == shape and sums.is_contiguous(),
        op,
        f"{name} must be contiguous and have the output's shape {shape}, got {list(sums.shape)}",
    )


def _through_gate(
    grad: Tensor, gate_sums: Tensor, up_sums: Tensor, d_gate: Tensor, d_up: Tensor, activation: str
) -> None:
    rows, columns = grad.shape
    if grad.numel() == 0:
        return
    tile = GATED_GRADIENT.choose(target.of(grad.device), "any")
    widest = tile.m * max(grad.stride(0), columns) + tile.n
    target.launch(
        gated_gradient,
        (target.divide_up(rows, tile.m) * target.divide_up(columns, tile.n),),
        grad,
        gate_sums,
        up_sums,
        d_gate,
        d_up,
        grad.stride(0),
        rows,
        columns,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        WIDE=widest >= 2**31,
        ACTIVATION=activation,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
