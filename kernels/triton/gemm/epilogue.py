"""What becomes of a tile of sums: activation(sums + bias) + residual, rounded once and stored.

Where the activation is a derivative, the residual is the gradient by which it is multiplied.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from ..activation import activate, activation_gradient, differentiated, is_derivative


@triton.jit
def tile_of(
    p_x, stride, first_m, first_n, len_m, len_n,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Pointers and mask [BLOCK_M, BLOCK_N] of a tile of a len_m × len_n matrix, cut at its ends;
    columns are neighbours, rows `stride` apart."""
    o_m = tl.arange(0, BLOCK_M)
    o_n = tl.arange(0, BLOCK_N)
    m_tile = (o_m < len_m - first_m)[:, None] & (o_n < len_n - first_n)[None, :]
    o_row = (o_m.to(tl.int64) if WIDE else o_m) * stride
    p_x += first_m.to(tl.int64) * stride + first_n
    return p_x + (o_row[:, None] + o_n[None, :]), m_tile


@triton.jit
def biased(b_acc, p_bias, first_n, len_n, BLOCK_N: tl.constexpr):
    """`b_acc` [M, BLOCK_N] and the bias of its columns, from `first_n` on, where there is one."""
    if p_bias is not None:
        o_n = tl.arange(0, BLOCK_N)
        b_bias = tl.load(p_bias + first_n + o_n, mask=o_n < len_n - first_n, other=0.0)
        b_acc += b_bias.to(tl.float32)[None, :]
    return b_acc


@triton.jit
def finished(
    b_acc, p_bias, p_residual, stride_rm, first_m, first_n, len_m, len_n,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """The output in float32 of sums `b_acc` [BLOCK_M, BLOCK_N] of rows from `first_m` and columns
    from `first_n` on."""
    b_acc = biased(b_acc, p_bias, first_n, len_n, BLOCK_N)
    if is_derivative(ACTIVATION):
        b_out = activation_gradient(b_acc, differentiated(ACTIVATION))
    else:
        b_out = activate(b_acc, ACTIVATION)
    if p_residual is not None:
        p_tile, m_tile = tile_of(
            p_residual, stride_rm, first_m, first_n, len_m, len_n, BLOCK_M, BLOCK_N, WIDE
        )
        b_residual = tl.load(p_tile, mask=m_tile, other=0.0)
        if is_derivative(ACTIVATION):
            b_out *= b_residual.to(tl.float32)
        else:
            b_out += b_residual.to(tl.float32)
    return b_out


@triton.jit
def store_tile(
    p_out, b_out, first_m, first_n, len_m, len_n,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Stores `b_out` [BLOCK_M, BLOCK_N] in a contiguous len_m × len_n matrix, cut at its ends."""
    p_tile, m_tile = tile_of(p_out, len_n, first_m, first_n, len_m, len_n, BLOCK_M, BLOCK_N, WIDE)
    tl.store(p_tile, b_out.to(p_out.dtype.element_ty), mask=m_tile)
