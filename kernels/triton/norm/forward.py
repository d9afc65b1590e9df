"""The norms: rows that fit a program's registers are read once, longer ones twice."""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .moments import long_moments, moments, normalised
from .rows import load_rows, load_weight, row_offsets


@triton.jit
def store_normed(
    b_n, p_weight, p_bias, p_after, p_y, o_after, o_row, o_n, mask, len_n, weight_offset
):
    """b_n * (weight + offset) + bias + after [BLOCK_R, BLOCK_N] to rows of contiguous y."""
    if p_weight is not None:
        b_n *= load_weight(p_weight, o_n, len_n, weight_offset)[None, :]
    if p_bias is not None:
        b_n += load_weight(p_bias, o_n, len_n, 0.0)[None, :]
    if p_after is not None:
        b_n += load_rows(p_after, None, o_after, None, o_n, mask)
    p_tile = p_y + (o_row * len_n)[:, None] + o_n[None, :]
    tl.store(p_tile, b_n.to(p_y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "middle", "inner"])
def norm_rows(
    p_x, p_residual, p_after, p_weight, p_bias, p_y, p_sum,
    stride_xo, stride_xm, stride_xi,
    stride_ro, stride_rm, stride_ri,
    stride_ao, stride_am, stride_ai,
    rows, middle, inner, len_n, eps, weight_offset,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, NESTED: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_R whole rows."""
    o_row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    o_n = tl.arange(0, BLOCK_N)  # [BLOCK_N]
    mask = (o_row < rows)[:, None] & (o_n < len_n)[None, :]
    o_x = row_offsets(o_row, middle, inner, stride_xo, stride_xm, stride_xi, NESTED)
    o_residual = row_offsets(o_row, middle, inner, stride_ro, stride_rm, stride_ri, NESTED)
    o_after = row_offsets(o_row, middle, inner, stride_ao, stride_am, stride_ai, NESTED)
    b_v = load_rows(p_x, p_residual, o_x, o_residual, o_n, mask)  # [BLOCK_R, BLOCK_N]
    if p_sum is not None:
        p_tile = p_sum + (o_row * len_n)[:, None] + o_n[None, :]
        tl.store(p_tile, b_v.to(p_sum.dtype.element_ty), mask=mask)
    mean, inverse, shift = moments(b_v, mask, len_n, eps, CENTRED)
    b_n = normalised(b_v, mean, inverse, shift, CENTRED)
    store_normed(
        b_n, p_weight, p_bias, p_after, p_y, o_after, o_row, o_n, mask, len_n, weight_offset
    )


@triton.jit(do_not_specialize=["middle", "inner"])
def norm_long_row(
    p_x, p_residual, p_after, p_weight, p_bias, p_y, p_sum,
    stride_xo, stride_xm, stride_xi,
    stride_ro, stride_rm, stride_ri,
    stride_ao, stride_am, stride_ai,
    middle, inner, len_n, eps, weight_offset,
    BLOCK_N: tl.constexpr, NESTED: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """A program owns one row, and walks over it for its moments and again to normalise it."""
    o_row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)  # [1]
    o_x = row_offsets(o_row, middle, inner, stride_xo, stride_xm, stride_xi, NESTED)
    o_residual = row_offsets(o_row, middle, inner, stride_ro, stride_rm, stride_ri, NESTED)
    o_after = row_offsets(o_row, middle, inner, stride_ao, stride_am, stride_ai, NESTED)
    mean, inverse = long_moments(p_x, p_residual, o_x, o_residual, len_n, eps, BLOCK_N, CENTRED)
    for first in tl.range(0, len_n, BLOCK_N):
        o_n = first + tl.arange(0, BLOCK_N)
        mask = (o_n < len_n)[None, :]
        b_v = load_rows(p_x, p_residual, o_x, o_residual, o_n, mask)  # [1, BLOCK_N]
        if p_sum is not None:
            p_tile = p_sum + (o_row * len_n)[:, None] + o_n[None, :]
            tl.store(p_tile, b_v.to(p_sum.dtype.element_ty), mask=mask)
        b_n = normalised(b_v, mean, inverse, tl.zeros_like(mean), CENTRED)
        store_normed(
            b_n, p_weight, p_bias, p_after, p_y, o_after, o_row, o_n, mask, len_n, weight_offset
        )
