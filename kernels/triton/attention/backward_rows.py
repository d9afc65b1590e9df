"""What the gradients need of every query by itself: δ; and what sinks take from it."""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .backward_scores import add_exactly
from .scores import LARGEST, LOG2E, in_base_2

LOG2E_REST = tl.constexpr(1.92596298909109e-08)  # what float32 leaves of log2(e)


@triton.jit(do_not_specialize=["rows", "inner", "outer"])
def attention_backward_rows(
    p_out, p_grad, p_grad_lse, p_lse, p_delta, p_log, p_rest, rows, inner, outer,
    DV: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Of BLOCK_R rows of DV elements: δ = rowsum(dO ∘ O) - dlse, 0 for a row that attends nothing,
    and lse in units of log 2, with `p_rest` in two parts whose sum has no rounding error.

    The rows of out have an inner dimension of `inner`, which is the outer one of lse, so that each
    lies `outer` places from the next there.
    """
    o_row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_row = o_row < rows
    o_lse = o_row % inner * outer + o_row // inner
    o_dv = tl.arange(0, BLOCK_DV)
    o_elements = (o_row * DV)[:, None] + o_dv[None, :]  # [BLOCK_R, BLOCK_DV]
    m_elements = m_row[:, None] & (o_dv < DV)[None, :]
    b_out = tl.load(p_out + o_elements, mask=m_elements, other=0.0).to(tl.float32)
    b_grad = tl.load(p_grad + o_elements, mask=m_elements, other=0.0).to(tl.float32)
    b_delta = tl.sum(b_out * b_grad, 1)  # [BLOCK_R]
    if p_grad_lse is not None:
        b_delta -= tl.load(p_grad_lse + o_lse, mask=m_row, other=0.0)
    b_lse = tl.load(p_lse + o_lse, mask=m_row, other=0.0)
    tl.store(p_delta + o_lse, tl.where(b_lse == float("-inf"), 0.0, b_delta), mask=m_row)
    b_log = in_base_2(b_lse)
    tl.store(p_log + o_lse, b_log, mask=m_row)
    if p_rest is not None:
        b_rest = tl.fma(b_lse, LOG2E, -b_log) + b_lse * LOG2E_REST
        tl.store(p_rest + o_lse, tl.where(tl.abs(b_log) < LARGEST, b_rest, 0.0), mask=m_row)


@triton.jit(do_not_specialize=["batch", "heads", "len_q"])
def attention_backward_sinks(
    p_sinks, p_lse, p_delta, p_grad_sinks, batch, heads, len_q, BLOCK_R: tl.constexpr
):
    """A sink's weight exp(sink - lse) mixes no value, so its gradient is -weight · δ, summed over
    the queries of its head, which a program owns. lse and δ are [batch, heads, len_q]."""
    i_h = tl.program_id(0).to(tl.int64)
    sink = tl.load(p_sinks + i_h).to(tl.float32)
    b_sum = tl.zeros([BLOCK_R], tl.float32)
    b_over = tl.zeros([BLOCK_R], tl.float32)
    o_head = i_h * len_q
    for _ in range(batch):
        for first in tl.range(0, len_q, BLOCK_R):
            o_m = first + tl.arange(0, BLOCK_R)
            b_lse = tl.load(p_lse + o_head + o_m, mask=o_m < len_q, other=float("-inf"))
            b_delta = tl.load(p_delta + o_head + o_m, mask=o_m < len_q, other=0.0)
            m_dead = b_lse == float("-inf")
            b_more = tl.where(m_dead, 0.0, tl.exp(sink - b_lse) * b_delta)
            b_sum, b_over = add_exactly(b_sum, b_over, b_more)
        o_head += heads.to(tl.int64) * len_q
    tl.store(p_grad_sinks + i_h, -tl.sum(b_sum, 0))
