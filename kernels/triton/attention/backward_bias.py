"""The gradient of the bias: a program owns one tile of it and makes the scores that it was added to
again, those of every dimension in which the bias broadcasts in a fixed order.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .backward_keys import COUNTS
from .backward_scores import (
    add_exactly,
    attended,
    load_some,
    score_gradients,
    sequences,
    sliced_products,
)
from .scores import LOG2E, visible_tiles


@triton.jit(do_not_specialize=[*COUNTS, "size_m", "size_n", "chunk"])
def attention_backward_bias(
    p_q, p_k, p_v, p_bias, p_slopes, p_grad, p_delta, p_log, p_rest, p_starts_q, p_starts_k,
    stride_qb, stride_qh, stride_qm,
    stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    stride_gb, stride_gh, stride_gm,
    stride_lb, stride_lh,
    stride_bb, stride_bh, stride_bm, stride_bn,
    stride_sb,
    batch, heads, heads_kv, tokens_q, tokens_k, longest_q, longest_k,
    scale, softcap, window_left, window_right,
    p_sums, size_m, size_n, chunk,
    SUM_B: tl.constexpr, SUM_H: tl.constexpr, SUM_M: tl.constexpr, SUM_N: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STEP_D: tl.constexpr, STEP_DV: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The bias has `size_m` × `size_n` numbers for each batch and head that it tells apart; SUM_x
    says where it does not. Items, which are tiles of queries of a head of a batch that the bias
    does not tell apart, are summed by `chunk`, and the sums of one chunk follow those of the last.
    """
    ROWS: tl.constexpr = 1 if SUM_M else BLOCK_M
    COLS: tl.constexpr = 1 if SUM_N else BLOCK_N
    blocks_m, blocks_n = tl.cdiv(size_m, ROWS), tl.cdiv(size_n, COLS)
    batches, its_heads = 1 if SUM_B else batch, 1 if SUM_H else heads
    pid = tl.program_id(0)
    i_n, i_m = pid % blocks_n, pid // blocks_n % blocks_m
    i_matrix = (pid // blocks_n // blocks_m % (batches * its_heads)).to(tl.int64)
    i_chunk = pid // blocks_n // blocks_m // (batches * its_heads)

    items_m = tl.cdiv(longest_q, BLOCK_M) if SUM_M else 1
    items_h = heads if SUM_H else 1
    items = items_m * items_h * (batch if SUM_B else 1)
    o_q, o_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    o_in = o_n
    if WIDE:  # 32-bit offsets inside a tile save registers
        o_q, o_in = o_q.to(tl.int64), o_in.to(tl.int64)
    b_sum = tl.zeros([ROWS, COLS], tl.float32)
    b_over = tl.zeros([ROWS, COLS], tl.float32)
    for i in range(tl.minimum(items - i_chunk * chunk, chunk)):
        item = i_chunk * chunk + i
        t_m = item % items_m if SUM_M else i_m
        i_h = (item // items_m % items_h).to(tl.int64) if SUM_H else i_matrix % heads
        i_b = (item // items_m // items_h).to(tl.int64) if SUM_B else i_matrix // its_heads
        first_q, len_q, first_k, len_k, right = sequences(
            p_starts_q, p_starts_k, i_b, batch, tokens_q, tokens_k, longest_q, longest_k
        )
        if p_starts_q is not None:
            b_sum += tl.where(right, 0.0, float("nan"))
            len_q = tl.where(right, len_q, 0)

        o_m = t_m * BLOCK_M + o_q  # [BLOCK_M]
        m_row = o_m < len_q
        o_first = tl.minimum(first_q + t_m * BLOCK_M, tokens_q - 1)
        o_own = tl.minimum(o_q, tokens_q - 1 - o_first)  # what is read past the end is masked
        p_q_tile = p_q + i_b * stride_qb + i_h * stride_qh + o_first * stride_qm
        p_grad_tile = p_grad + i_b * stride_gb + i_h * stride_gh + o_first * stride_gm
        o_stats = i_b * stride_lb + i_h * stride_lh + o_first + o_q
        b_log = load_some(p_log + o_stats, m_row, float("-inf"))
        b_delta = load_some(p_delta + o_stats, m_row, 0.0)
        b_rest = None
        if p_rest is not None:
            b_rest = load_some(p_rest + o_stats, m_row, 0.0)[:, None]
        m_live = b_log != float("-inf")
        slope = None
        if p_slopes is not None:
            slope = tl.load(p_slopes + i_b * stride_sb + i_h) * LOG2E
        p_bias_rows = p_bias + i_b * stride_bb + i_h * stride_bh
        p_bias_rows += (t_m * BLOCK_M).to(tl.int64) * stride_bm
        i_kv = i_h // (heads // heads_kv)
        p_k_head = p_k + i_b * stride_kb + i_kv * stride_kh + first_k * stride_kn
        p_v_head = p_v + i_b * stride_vb + i_kv * stride_vh + first_k * stride_vn

        diagonal = len_k - len_q  # query i stands at key i + diagonal
        first = t_m * BLOCK_M
        last = tl.minimum(first + BLOCK_M, len_q) - 1
        t_seen, _whole, _whole_end, t_seen_end = visible_tiles(
            first + diagonal, last + diagonal, len_k, window_left, window_right, BLOCK_N
        )
        t_seen_end = tl.where(first < len_q, t_seen_end, t_seen)
        if not SUM_N:
            t_seen, t_seen_end = tl.maximum(t_seen, i_n), tl.minimum(t_seen_end, i_n + 1)
        for t in tl.range(0, t_seen_end - t_seen):
            t_n = t_seen + t
            o_first = (t_n * BLOCK_N).to(tl.int64)
            o_key = t_n * BLOCK_N + o_n  # [BLOCK_N]
            m_key = o_key < len_k
            m_s = attended(
                m_live[:, None] & m_key[None, :], o_m[:, None], o_key[None, :], diagonal,
                window_left, window_right,
            )  # fmt: skip
            b_s = sliced_products(
                p_q_tile, o_own * stride_qm, p_k_head + o_first * stride_kn, o_in * stride_kn,
                m_key, D, STEP_D, BLOCK_M, BLOCK_N, PRECISION,
            )  # fmt: skip
            b_dp = sliced_products(
                p_grad_tile, o_own * stride_gm, p_v_head + o_first * stride_vn, o_in * stride_vn,
                m_key, DV, STEP_DV, BLOCK_M, BLOCK_N, PRECISION,
            )  # fmt: skip
            p_bias_tile = p_bias_rows + o_first * stride_bn
            p_bias_tile += (o_q * stride_bm)[:, None] + (o_in * stride_bn)[None, :]
            _b_p, b_ds = score_gradients(
                b_s, b_dp, b_log[:, None], b_rest, b_delta[:, None], m_s, p_bias_tile, m_s,
                o_m[:, None], o_key[None, :], diagonal, slope, scale, softcap,
                THROUGH_CAP=False,
            )  # fmt: skip
            if SUM_M:
                b_ds = tl.sum(b_ds, 0, keep_dims=True)
            if SUM_N:
                b_ds = tl.sum(b_ds, 1, keep_dims=True)
            b_sum, b_over = add_exactly(b_sum, b_over, b_ds)

    o_m, o_n = i_m * ROWS + tl.arange(0, ROWS), i_n * COLS + tl.arange(0, COLS)
    i_matrix += i_chunk.to(tl.int64) * batches * its_heads
    p_elements = p_sums + (i_matrix * size_m + o_m)[:, None] * size_n + o_n[None, :]
    tl.store(p_elements, b_sum, mask=(o_m < size_m)[:, None] & (o_n < size_n)[None, :])


@triton.jit(do_not_specialize=["size", "chunks"])
def attention_backward_sums(p_sums, p_total, size, chunks, BLOCK_R: tl.constexpr):
    """The total [size] of the sums [chunks, size], in their order."""
    o = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    b_sum = tl.zeros([BLOCK_R], tl.float32)
    b_over = tl.zeros([BLOCK_R], tl.float32)
    for _ in tl.range(0, chunks):
        b_more = tl.load(p_sums + o, mask=o < size, other=0.0)
        b_sum, b_over = add_exactly(b_sum, b_over, b_more)
        p_sums += size
    tl.store(p_total + o, b_sum, mask=o < size)
