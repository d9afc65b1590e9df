"""What the forward and the backward kernels share: tiles of rows, scores, masks and visible keys.

Scores are in units of log 2 everywhere: one exp2 per score, log2(e) folded into the scale.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import math

import triton
import triton.language as tl

from ..activation import tanh

LOG2E = tl.constexpr(math.log2(math.e))
# log 2 in two parts: a float32 near it, and what is left.
LN2 = tl.constexpr(round(math.log(2.0) * 2**24) / 2**24)
LN2_REST = tl.constexpr(math.log(2.0) - round(math.log(2.0) * 2**24) / 2**24)
LARGEST = tl.constexpr((2 - 2**-23) * 2.0**127)  # of float32


@triton.jit
def load_slice(p_rows, o_col, cols, CUT_COLS: tl.constexpr):
    """The same columns of every row pointed at. What lies outside reads as zero."""
    p_elements = p_rows[:, None] + o_col[None, :]
    if CUT_COLS:
        return tl.load(p_elements, mask=(o_col < cols)[None, :], other=0.0)
    return tl.load(p_elements)


@triton.jit
def load_rows(p_tile, o_row, o_col, m_row, cols, CUT_ROWS: tl.constexpr, CUT_COLS: tl.constexpr):
    """A tile whose rows are contiguous and begin at offsets `o_row`; those outside read as zero."""
    p_elements = p_tile + o_row[:, None] + o_col[None, :]
    if CUT_ROWS and CUT_COLS:
        return tl.load(p_elements, mask=m_row[:, None] & (o_col < cols)[None, :], other=0.0)
    if CUT_ROWS:
        return tl.load(p_elements, mask=m_row[:, None], other=0.0)
    if CUT_COLS:
        return tl.load(p_elements, mask=(o_col < cols)[None, :], other=0.0)
    return tl.load(p_elements)


@triton.jit
def load_tile(
    p_tile, o_row, o_col, stride, rows, cols, CUT_ROWS: tl.constexpr, CUT_COLS: tl.constexpr
):
    """A tile of a matrix whose rows are contiguous. What lies outside reads as zero."""
    return load_rows(p_tile, o_row * stride, o_col, o_row < rows, cols, CUT_ROWS, CUT_COLS)


@triton.jit
def finite_pivot(b_max):
    """What to subtract from scores before exp2: their maximum, but never inf - inf. A row that has
    seen nothing keeps a sum of 0, and one with a score of +inf gets an infinite one."""
    return tl.where(tl.abs(b_max) == float("inf"), 0.0, b_max)


@triton.jit
def in_base_2(x):
    """A natural number in the units of scores. One near the largest, with which people mask too,
    must not become infinite; NaN stays."""
    b = x * LOG2E
    b = tl.maximum(b, -LARGEST, propagate_nan=tl.PropagateNan.ALL)
    b = tl.minimum(b, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(tl.abs(x) == float("inf"), x, b)


@triton.jit
def modified(
    b_s, b_slope, p_bias_rows, o_m, o_key, diagonal, len_k, stride_bn, scale, softcap,
    HAS_SLOPES: tl.constexpr, CUT_KEYS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The scores that products `b_s` [BLOCK_M, BLOCK_N] become: scaled, capped, sloped, biased."""
    if softcap is not None:
        b_s = tanh(b_s * (scale / softcap)) * (softcap * LOG2E)
    else:
        b_s = b_s * (scale * LOG2E)
    if HAS_SLOPES:
        o_apart = tl.abs(o_m[:, None] + diagonal - o_key[None, :])
        b_s -= b_slope[:, None] * o_apart.to(tl.float32)
    if p_bias_rows is not None:
        # [BLOCK_M, BLOCK_N]
        o_bias = (o_key.to(tl.int64) if WIDE else o_key) * stride_bn
        p_elements = p_bias_rows[:, None] + o_bias[None, :]
        if CUT_KEYS:
            b_bias = tl.load(p_elements, mask=(o_key < len_k)[None, :], other=0)
        else:
            b_bias = tl.load(p_elements)
        if p_bias_rows.dtype.element_ty == tl.uint8:
            b_s = tl.where(b_bias != 0, b_s, float("-inf"))
        else:
            b_s += in_base_2(b_bias.to(tl.float32))
    return b_s


@triton.jit
def visible(o_m, o_key, diagonal, len_k, window_left, window_right):
    """Which keys each query may attend, [BLOCK_M, BLOCK_N]."""
    m_s = (o_key < len_k)[None, :]
    if window_left is not None:
        m_s = m_s & (o_key[None, :] >= o_m[:, None] + (diagonal - window_left))
    if window_right is not None:
        m_s = m_s & (o_key[None, :] <= o_m[:, None] + (diagonal + window_right))
    return m_s


@triton.jit
def visible_tiles(first, last, len_k, window_left, window_right, BLOCK_N: tl.constexpr):
    """(t_seen, t_whole, t_whole_end, t_seen_end): for rows that stand at keys `first` to `last`,
    tiles [t_seen, t_whole) and [t_whole_end, t_seen_end) of keys need a mask, those between none.
    """
    # Keys [seen, seen_end) are visible to some row, [whole, whole_end) to all of them.
    seen, seen_end, whole, whole_end = 0, len_k, 0, len_k
    if window_left is not None:
        seen = tl.maximum(first - window_left, 0)
        whole = tl.maximum(last - window_left, 0)
    if window_right is not None:
        seen_end = tl.maximum(tl.minimum(last + window_right + 1, len_k), seen)
        whole_end = tl.maximum(tl.minimum(first + window_right + 1, len_k), 0)
    t_seen = seen // BLOCK_N
    t_seen_end = tl.cdiv(seen_end, BLOCK_N)
    t_whole = tl.minimum(tl.cdiv(whole, BLOCK_N), t_seen_end)
    t_whole_end = tl.maximum(whole_end // BLOCK_N, t_whole)
    return t_seen, t_whole, t_whole_end, t_seen_end
