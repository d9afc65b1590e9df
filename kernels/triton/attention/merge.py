"""Joins what the pieces of a row's keys have summed: the other half of Flash-Decoding."""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .scores import finite_pivot
from .softmax import finished, with_sink


@triton.jit(do_not_specialize=["splits", "heads", "tokens"])
def attention_merge(
    p_parts, p_maxima, p_sums, p_sinks, p_out, p_lse,
    rows, splits, heads, tokens,
    DV: tl.constexpr, PACKED: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """A program joins the pieces of one row, [splits, rows, DV] in all, BLOCK_S at a time, in the
    same order whoever was first. Rows are [B, H, tokens]; packed ones [tokens, H], and their lse
    [H, tokens]."""
    i_row = tl.program_id(0).to(tl.int64)
    o_dv = tl.arange(0, BLOCK_DV)
    m_dv = (o_dv < DV)[None, :]

    b_max = tl.full([1], float("-inf"), tl.float32)
    b_sum = tl.zeros([1], tl.float32)
    b_acc = tl.zeros([1, BLOCK_DV], tl.float32)
    for first in tl.range(0, splits, BLOCK_S):
        o_s = first + tl.arange(0, BLOCK_S)
        m_s = o_s < splits
        o_piece = o_s.to(tl.int64) * rows + i_row  # [BLOCK_S]
        b_top = tl.load(p_maxima + o_piece, mask=m_s, other=float("-inf"))
        b_part_sum = tl.load(p_sums + o_piece, mask=m_s, other=0.0)
        p_elements = p_parts + (o_piece * DV)[:, None] + o_dv[None, :]
        b_part = tl.load(p_elements, mask=m_s[:, None] & m_dv, other=0.0)  # [BLOCK_S, BLOCK_DV]

        b_new = tl.maximum(b_max, tl.max(b_top, 0))
        b_pivot = finite_pivot(b_new)
        b_decay = tl.exp2(b_max - b_pivot)
        b_weight = tl.exp2(b_top - b_pivot)  # [BLOCK_S]
        b_max = b_new
        b_sum = b_sum * b_decay + tl.sum(b_part_sum * b_weight, 0)
        b_acc = b_acc * b_decay[:, None] + tl.sum(b_part * b_weight[:, None], 0)[None, :]

    i_h = i_row % heads if PACKED else i_row // tokens % heads
    if p_sinks is not None:
        b_sink = tl.load(p_sinks + i_h + tl.arange(0, 1))
        b_max, b_sum, b_acc = with_sink(b_max, b_sum, b_acc, b_sink)
    b_out, b_lse = finished(b_max, b_sum, b_acc)
    i_lse = i_h * tokens + i_row // heads if PACKED else i_row
    tl.store(p_lse + i_lse + tl.arange(0, 1), b_lse)
    p_elements = p_out + i_row * DV + o_dv[None, :]
    tl.store(p_elements, b_out.to(p_out.dtype.element_ty), mask=m_dv)
