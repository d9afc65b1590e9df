"""The gradients of norms.

With n = (v - mean) * inverse and g = grad * weight, the gradient of v is
inverse * (g - mean(g) - n * mean(g * n)), without mean(g) where nothing is centred.

The gradients of weight and bias are sums over rows. Each program adds up the rows that are its own
into a row of partial sums, and a second kernel adds those in their order: no result depends on
which program comes first.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .moments import long_moments, moments, normalised
from .rows import load_rows, load_weight, row_offsets


@triton.jit
def store_gradient(
    b_g, b_n, slope, level, inverse, p_grad_sum, p_grad_x, o_grad_sum, o_row, o_n, mask, len_n,
    CENTRED: tl.constexpr,
):  # fmt: skip
    """The gradient [BLOCK_R, BLOCK_N] of v, where slope is mean(g * n) and level mean(g), and the
    gradient that reaches the sum of x and residual directly."""
    b_out = b_g - b_n * slope[:, None]
    if CENTRED:
        b_out -= level[:, None]
    b_out *= inverse[:, None]
    if p_grad_sum is not None:
        b_out += load_rows(p_grad_sum, None, o_grad_sum, None, o_n, mask)
    p_tile = p_grad_x + (o_row * len_n)[:, None] + o_n[None, :]
    tl.store(p_tile, b_out.to(p_grad_x.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "chunk", "middle", "inner"])
def norm_backward_rows(
    p_x, p_residual, p_grad, p_grad_sum, p_weight, p_grad_x, p_weight_sums, p_bias_sums,
    stride_xo, stride_xm, stride_xi,
    stride_ro, stride_rm, stride_ri,
    stride_go, stride_gm, stride_gi,
    stride_so, stride_sm, stride_si,
    rows, chunk, middle, inner, len_n, eps, weight_offset,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, NESTED: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """A program owns `chunk` rows, a multiple of BLOCK_R that it holds whole, and a row of each of
    the partial sums [programs, len_n]."""
    i_program = tl.program_id(0).to(tl.int64)
    o_n = tl.arange(0, BLOCK_N)  # [BLOCK_N]
    b_weight_sum = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    b_bias_sum = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for step in tl.range(0, chunk, BLOCK_R):
        o_row = i_program * chunk + step + tl.arange(0, BLOCK_R)  # [BLOCK_R]
        mask = (o_row < rows)[:, None] & (o_n < len_n)[None, :]
        o_x = row_offsets(o_row, middle, inner, stride_xo, stride_xm, stride_xi, NESTED)
        o_residual = row_offsets(o_row, middle, inner, stride_ro, stride_rm, stride_ri, NESTED)
        o_grad = row_offsets(o_row, middle, inner, stride_go, stride_gm, stride_gi, NESTED)
        o_grad_sum = row_offsets(o_row, middle, inner, stride_so, stride_sm, stride_si, NESTED)
        b_v = load_rows(p_x, p_residual, o_x, o_residual, o_n, mask)  # [BLOCK_R, BLOCK_N]
        b_g = load_rows(p_grad, None, o_grad, None, o_n, mask)
        mean, inverse, shift = moments(b_v, mask, len_n, eps, CENTRED)
        # Rows that do not exist have no variance, and without eps no finite n.
        b_n = tl.where(mask, normalised(b_v, mean, inverse, shift, CENTRED), 0.0)
        if p_weight_sums is not None:
            b_weight_sum += b_g * b_n
        if p_bias_sums is not None:
            b_bias_sum += b_g
        if p_weight is not None:
            b_g *= load_weight(p_weight, o_n, len_n, weight_offset)[None, :]
        slope = tl.sum(b_g * b_n, 1) / len_n
        level = tl.sum(b_g, 1) / len_n if CENTRED else slope
        store_gradient(
            b_g, b_n, slope, level, inverse, p_grad_sum, p_grad_x, o_grad_sum, o_row, o_n, mask,
            len_n, CENTRED,
        )  # fmt: skip
    m_n = o_n < len_n
    if p_weight_sums is not None:
        tl.store(p_weight_sums + i_program * len_n + o_n, tl.sum(b_weight_sum, 0), mask=m_n)
    if p_bias_sums is not None:
        tl.store(p_bias_sums + i_program * len_n + o_n, tl.sum(b_bias_sum, 0), mask=m_n)


@triton.jit(do_not_specialize=["middle", "inner"])
def norm_backward_long_row(
    p_x, p_residual, p_grad, p_grad_sum, p_weight, p_grad_x, p_moments,
    stride_xo, stride_xm, stride_xi,
    stride_ro, stride_rm, stride_ri,
    stride_go, stride_gm, stride_gi,
    stride_so, stride_sm, stride_si,
    middle, inner, len_n, eps, weight_offset,
    BLOCK_N: tl.constexpr, NESTED: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """A program owns one row; it leaves mean and inverse in p_moments [rows, 2]."""
    o_row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)  # [1]
    o_x = row_offsets(o_row, middle, inner, stride_xo, stride_xm, stride_xi, NESTED)
    o_residual = row_offsets(o_row, middle, inner, stride_ro, stride_rm, stride_ri, NESTED)
    o_grad = row_offsets(o_row, middle, inner, stride_go, stride_gm, stride_gi, NESTED)
    o_grad_sum = row_offsets(o_row, middle, inner, stride_so, stride_sm, stride_si, NESTED)
    mean, inverse = long_moments(p_x, p_residual, o_x, o_residual, len_n, eps, BLOCK_N, CENTRED)
    tl.store(p_moments + 2 * o_row, mean)
    tl.store(p_moments + 2 * o_row + 1, inverse)
    shift = tl.zeros_like(mean)
    slope = tl.zeros_like(mean)
    level = tl.zeros_like(mean)
    for first in tl.range(0, len_n, BLOCK_N):
        o_n = first + tl.arange(0, BLOCK_N)
        mask = (o_n < len_n)[None, :]
        b_v = load_rows(p_x, p_residual, o_x, o_residual, o_n, mask)  # [1, BLOCK_N]
        b_g = load_rows(p_grad, None, o_grad, None, o_n, mask)
        if p_weight is not None:
            b_g *= load_weight(p_weight, o_n, len_n, weight_offset)[None, :]
        slope += tl.sum(b_g * normalised(b_v, mean, inverse, shift, CENTRED), 1)
        if CENTRED:
            level += tl.sum(b_g, 1)
    slope /= len_n
    level /= len_n
    for first in tl.range(0, len_n, BLOCK_N):
        o_n = first + tl.arange(0, BLOCK_N)
        mask = (o_n < len_n)[None, :]
        b_v = load_rows(p_x, p_residual, o_x, o_residual, o_n, mask)  # [1, BLOCK_N]
        b_g = load_rows(p_grad, None, o_grad, None, o_n, mask)
        if p_weight is not None:
            b_g *= load_weight(p_weight, o_n, len_n, weight_offset)[None, :]
        b_n = normalised(b_v, mean, inverse, shift, CENTRED)
        store_gradient(
            b_g, b_n, slope, level, inverse, p_grad_sum, p_grad_x, o_grad_sum, o_row, o_n, mask,
            len_n, CENTRED,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "chunk", "middle", "inner"])
def norm_partial_sums(
    p_x, p_residual, p_grad, p_moments, p_weight_sums, p_bias_sums,
    stride_xo, stride_xm, stride_xi,
    stride_ro, stride_rm, stride_ri,
    stride_go, stride_gm, stride_gi,
    rows, chunk, middle, inner, len_n,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, NESTED: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """The partial sums [chunks, len_n] of long rows; a program owns BLOCK_N columns of a chunk."""
    i_chunk = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    b_weight_sum = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    b_bias_sum = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for step in tl.range(0, chunk, BLOCK_R):
        o_row = i_chunk * chunk + step + tl.arange(0, BLOCK_R)  # [BLOCK_R]
        m_row = o_row < rows
        mask = m_row[:, None] & (o_n < len_n)[None, :]
        o_grad = row_offsets(o_row, middle, inner, stride_go, stride_gm, stride_gi, NESTED)
        b_g = load_rows(p_grad, None, o_grad, None, o_n, mask)  # [BLOCK_R, BLOCK_N]
        if p_bias_sums is not None:
            b_bias_sum += b_g
        if p_weight_sums is not None:
            o_x = row_offsets(o_row, middle, inner, stride_xo, stride_xm, stride_xi, NESTED)
            o_residual = row_offsets(o_row, middle, inner, stride_ro, stride_rm, stride_ri, NESTED)
            b_v = load_rows(p_x, p_residual, o_x, o_residual, o_n, mask)
            mean = tl.load(p_moments + 2 * o_row, mask=m_row, other=0.0)
            inverse = tl.load(p_moments + 2 * o_row + 1, mask=m_row, other=0.0)
            b_n = normalised(b_v, mean, inverse, tl.zeros_like(mean), CENTRED)
            b_weight_sum += b_g * b_n
    m_n = o_n < len_n
    if p_weight_sums is not None:
        tl.store(p_weight_sums + i_chunk * len_n + o_n, tl.sum(b_weight_sum, 0), mask=m_n)
    if p_bias_sums is not None:
        tl.store(p_bias_sums + i_chunk * len_n + o_n, tl.sum(b_bias_sum, 0), mask=m_n)


@triton.jit(do_not_specialize=["chunks"])
def sum_partials(p_sums, p_out, chunks, len_n, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr):
    """The column sums [len_n] of partial sums [chunks, len_n], in a fixed order."""
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    m_n = o_n < len_n
    b_sum = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for first in tl.range(0, chunks, BLOCK_R):
        o_r = first + tl.arange(0, BLOCK_R)
        p_tile = p_sums + (o_r.to(tl.int64) * len_n)[:, None] + o_n[None, :]
        b_sum += tl.load(p_tile, mask=(o_r < chunks)[:, None] & m_n[None, :], other=0.0)
    tl.store(p_out + o_n, tl.sum(b_sum, 0).to(p_out.dtype.element_ty), mask=m_n)
