"""What the backward kernels share: sequences, tiles, products of rows and gradients of scores.

With scores S, P = exp(S - lse) and δ = rowsum(dO ∘ O) - dlse (Dao et al. 2022, FlashAttention,
appendix B):

    dS = P ∘ (dO·Vᵀ - δ),  dQ = scale · dS·K,  dK = scale · dSᵀ·Q,  dV = Pᵀ·dO,  dbias = dS

A tile of scores has rows that a program owns and columns that it walks over, either of which may be
the queries: positions come as [rows, 1] and [1, columns].
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from ..activation import tanh
from .scores import LOG2E, in_base_2
from .sequences import owned_tokens


@triton.jit
def sequences(p_starts_q, p_starts_k, i_b, batch, tokens_q, tokens_k, longest_q, longest_k):
    """(first query, queries, first key, keys, right) of a sequence: all tokens where none are
    packed."""
    if p_starts_q is None:
        first = tl.full([], 0, tl.int64)
        return first, tokens_q, first, tokens_k, True
    else:
        first_q, len_q, right_q = owned_tokens(p_starts_q, i_b, batch, tokens_q, longest_q)
        first_k, len_k, right_k = owned_tokens(p_starts_k, i_b, batch, tokens_k, longest_k)
        return first_q.to(tl.int64), len_q, first_k.to(tl.int64), len_k, right_q & right_k


@triton.jit
def load_rows(p_tile, o_row, o_col, m_row, cols, CUT_COLS: tl.constexpr):
    """A tile whose rows are contiguous and begin at offsets `o_row`. What the mask of rows, if
    there is one, leaves out reads as zero, and so do columns past the last of `cols`."""
    p_elements = p_tile + o_row[:, None] + o_col[None, :]
    if m_row is not None:
        if CUT_COLS:
            return tl.load(p_elements, mask=m_row[:, None] & (o_col < cols)[None, :], other=0.0)
        return tl.load(p_elements, mask=m_row[:, None], other=0.0)
    if CUT_COLS:
        return tl.load(p_elements, mask=(o_col < cols)[None, :], other=0.0)
    return tl.load(p_elements)


@triton.jit
def load_some(p, m, other):
    """What `p` points at, and `other` where the mask, if there is one, leaves it out."""
    if m is None:
        return tl.load(p)
    else:
        return tl.load(p, mask=m, other=other)


@triton.jit
def store_rows(p_tile, o_row, o_col, stride, m_row, cols, b_tile):
    """`b_tile`, rounded, over the columns that exist of the rows that the mask names."""
    p_elements = p_tile + (o_row * stride)[:, None] + o_col[None, :]
    m_elements = m_row[:, None] & (o_col < cols)[None, :]
    tl.store(p_elements, b_tile.to(p_tile.dtype.element_ty), mask=m_elements)


@triton.jit
def store_nan(
    p, first, length, stride, cols, i_block, blocks, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """NaN over this program's share of all rows of a sequence whose indexes are wrong."""
    b_nan = tl.full([ROWS, COLS], float("nan"), tl.float32)
    for o_first in range(i_block * ROWS, length, blocks * ROWS):
        o_row = o_first + tl.arange(0, ROWS)
        store_rows(p, first + o_row, tl.arange(0, COLS), stride, o_row < length, cols, b_nan)


@triton.jit
def sliced_products(
    p_own, o_own, p_tile, o_row, m_row,
    SIZE: tl.constexpr, STEP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """[ROWS, COLS]: rows at offsets `o_own` times those of a tile, by slices where they are too
    long for the registers."""
    o_col = tl.arange(0, STEP)
    b_products = tl.zeros([ROWS, COLS], tl.float32)
    for d in tl.range(0, SIZE, STEP):
        b_own = load_rows(p_own + d, o_own, o_col, None, SIZE - d, SIZE % STEP != 0)  # [ROWS, STEP]
        b_tile = load_rows(p_tile + d, o_row, o_col, m_row, SIZE - d, SIZE % STEP != 0)
        b_products = tl.dot(b_own, tl.trans(b_tile), b_products, input_precision=PRECISION)
    return b_products


@triton.jit
def attended(m_s, o_m, o_key, diagonal, window_left, window_right):
    """The scores of `m_s` that the window leaves."""
    if window_left is not None:
        m_s = m_s & (o_key >= o_m + (diagonal - window_left))
    if window_right is not None:
        m_s = m_s & (o_key <= o_m + (diagonal + window_right))
    return m_s


@triton.jit
def score_gradients(
    b_s, b_dp, b_log, b_rest, b_delta, m_s, p_bias, m_bias, o_m, o_key, diagonal,
    slope, scale, softcap, THROUGH_CAP: tl.constexpr,
):  # fmt: skip
    """(P, dS) of a tile, from its products q·k and dO·v. Scores that the mask `m_s`, if there is
    one, leaves out have neither, whatever they would be.

    `b_log` is lse in units of log 2; `b_rest` are digits that float32 drops from it, None where
    results of 16 bits would not show them. THROUGH_CAP: dS is that of the score before the softcap,
    the product's but for `scale`.
    """
    if softcap is not None:
        b_tanh = tanh(b_s * (scale / softcap))
        b_s = b_tanh * (softcap * LOG2E)
    else:
        b_s = b_s * (scale * LOG2E)
    if slope is not None:
        b_s -= slope * tl.abs(o_m + diagonal - o_key).to(tl.float32)
    if p_bias is not None:
        b_bias = load_some(p_bias, m_bias, 0)
        if b_bias.dtype == tl.uint8:
            m_s = b_bias != 0 if m_s is None else m_s & (b_bias != 0)
        else:
            b_s += in_base_2(b_bias.to(tl.float32))
    b_s -= b_log
    if b_rest is not None:
        b_s -= b_rest
    b_p = tl.exp2(b_s)
    b_ds = b_p * (b_dp - b_delta)
    if softcap is not None and THROUGH_CAP:
        b_ds *= 1.0 - b_tanh * b_tanh
    if m_s is not None:
        b_p = tl.where(m_s, b_p, 0.0)
        b_ds = tl.where(m_s, b_ds, 0.0)
    return b_p, b_ds


@triton.jit
def add_exactly(b_sum, b_over, b_more):
    """(sum, what it holds too much): the next step of a compensated sum (Kahan 1965), which many
    equal terms do not lead astray."""
    b_more -= b_over
    b_new = b_sum + b_more
    return b_new, (b_new - b_sum) - b_more
