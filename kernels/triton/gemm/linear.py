"""The linear layer as one fused Triton kernel: activation(x @ weight.T + bias) + residual.

A program owns one BLOCK_M × BLOCK_N tile of the output. Programs go down GROUP_M tiles before they
step sideways, so that those that run together share rows of x and of the weight in the L2 cache
(the order of Triton's matmul tutorial).
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl

from .. import check, target
from ..activation import ACTIVATIONS, activate
from . import tiles
from .tiles import GROUP_M, TILE_K_BYTES


@triton.jit(do_not_specialize=["len_m"])
def linear_forward(
    p_x, p_weight, p_bias, p_residual, p_out,
    stride_xm, stride_xk, stride_wn, stride_wk, stride_rm,
    len_m, len_n, len_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    WHOLE_K: tl.constexpr, WIDE: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks_m = tl.cdiv(len_m, BLOCK_M)
    blocks_n = tl.cdiv(len_n, BLOCK_N)
    pid = tl.program_id(0)
    i_group = pid // (GROUP_M * blocks_n)
    group_m = tl.minimum(blocks_m - i_group * GROUP_M, GROUP_M)
    i_m = i_group * GROUP_M + pid % (GROUP_M * blocks_n) % group_m
    i_n = pid % (GROUP_M * blocks_n) // group_m

    # Rows and columns past the end repeat the last ones: only the epilogue needs a mask for them.
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    o_xm = tl.minimum(o_m, len_m - 1).to(tl.int64)
    o_wn = tl.minimum(o_n, len_n - 1).to(tl.int64)
    o_k = tl.arange(0, BLOCK_K).to(tl.int64) if WIDE else tl.arange(0, BLOCK_K)
    step = tl.full([], BLOCK_K, tl.int64) if WIDE else BLOCK_K
    # [BLOCK_M, BLOCK_K] and [BLOCK_N, BLOCK_K]
    p_x_tile = p_x + (o_xm * stride_xm)[:, None] + (o_k * stride_xk)[None, :]
    p_weight_tile = p_weight + (o_wn * stride_wn)[:, None] + (o_k * stride_wk)[None, :]

    b_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in tl.range(0, len_k, BLOCK_K):
        if WHOLE_K:
            b_x = tl.load(p_x_tile)
            b_weight = tl.load(p_weight_tile)
        else:
            m_k = (o_k < len_k - k)[None, :]
            b_x = tl.load(p_x_tile, mask=m_k, other=0.0)
            b_weight = tl.load(p_weight_tile, mask=m_k, other=0.0)
        b_acc = tl.dot(b_x, tl.trans(b_weight), b_acc, input_precision=PRECISION)
        p_x_tile += step * stride_xk
        p_weight_tile += step * stride_wk

    if p_bias is not None:
        b_acc += tl.load(p_bias + o_n, mask=o_n < len_n, other=0.0).to(tl.float32)[None, :]
    b_out = activate(b_acc, ACTIVATION)
    m_out = (o_m < len_m)[:, None] & (o_n < len_n)[None, :]
    if p_residual is not None:
        p_elements = p_residual + (o_m.to(tl.int64) * stride_rm)[:, None] + o_n[None, :]
        b_out += tl.load(p_elements, mask=m_out, other=0.0).to(tl.float32)
    p_elements = p_out + (o_m.to(tl.int64) * len_n)[:, None] + o_n[None, :]
    tl.store(p_elements, b_out.to(p_out.dtype.element_ty), mask=m_out)


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str
) -> None:
    op = "linear"
    check.require_floating(op, "x", x)
    check.require(x.dim() >= 1, op, "x must have at least 1 dimension, got shape []")
    check.require_device(op, "weight", weight, x.device)
    check.require_dtype(op, "weight", weight, x.dtype)
    check.require_rank(op, "weight", weight, 2)
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
    flat = x.reshape(rows, depth)
    flat_residual = None if residual is None else residual.reshape(rows, columns)

    architecture = target.of(x.device)
    tile = tiles.choose(rows, columns, x.element_size(), architecture)
    block_k = TILE_K_BYTES // x.element_size()
    target.launch(
        linear_forward,
        (target.divide_up(rows, tile.m) * target.divide_up(columns, tile.n),),
        flat,
        weight,
        bias,
        flat_residual,
        out,
        *flat.stride(),
        *weight.stride(),
        0 if flat_residual is None else flat_residual.stride(0),
        rows,
        columns,
        depth,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=block_k,
        GROUP_M=GROUP_M,
        WHOLE_K=depth % block_k == 0,
        WIDE=block_k * max(flat.stride(1), weight.stride(1)) >= 2**31,
        ACTIVATION=activation,
        PRECISION=architecture.float32_dots if x.dtype == torch.float32 else "ieee",
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out
