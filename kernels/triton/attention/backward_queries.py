"""The gradient of the queries: a program owns BLOCK_M queries of one head and walks over the keys
that they attend to.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .backward_keys import COUNTS
from .backward_scores import (
    attended,
    load_rows,
    score_gradients,
    sequences,
    sliced_products,
    store_nan,
    store_rows,
)
from .scores import LOG2E, visible_tiles


@triton.jit(do_not_specialize=COUNTS)
def attention_backward_queries(
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
    p_grad_q,
    stride_gqb, stride_gqh, stride_gqm,
    D: tl.constexpr, DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    STEP_D: tl.constexpr, STEP_DV: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The products q·k and dO·v are taken STEP_D and STEP_DV elements of a head at a time. The
    gradient of one query is cut into PARTS of BLOCK_C columns, each of a program that makes the
    same scores."""
    SLICED: tl.constexpr = STEP_D != BLOCK_D or STEP_DV != BLOCK_DV

    blocks = tl.cdiv(longest_q, BLOCK_M)
    pid = tl.program_id(0)
    # The last queries of a causal problem see the most keys: they come first.
    i_m = blocks - 1 - pid % blocks
    i_part = pid // blocks % PARTS
    i_h = (pid // blocks // PARTS % heads).to(tl.int64)
    i_b = (pid // blocks // PARTS // heads).to(tl.int64)
    first_d = i_part * BLOCK_C
    p_grad_q += i_b * stride_gqb + i_h * stride_gqh + first_d
    first_q, len_q, first_k, len_k, right = sequences(
        p_starts_q, p_starts_k, i_b, batch, tokens_q, tokens_k, longest_q, longest_k
    )
    if p_starts_q is not None:
        if i_m * BLOCK_M >= len_q:
            return
        if not right:
            store_nan(
                p_grad_q, first_q, len_q, stride_gqm, D - first_d, i_m, blocks, BLOCK_M, BLOCK_C
            )
            return

    # Queries past the end repeat the last one: only the stores need a mask.
    first = i_m * BLOCK_M
    o_q, o_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    o_own = tl.minimum(o_q, len_q - 1 - first)  # [BLOCK_M]
    o_m = first + o_own
    o_in = o_n
    if WIDE:  # 32-bit offsets inside a tile save registers
        o_own, o_in = o_own.to(tl.int64), o_in.to(tl.int64)
    o_d, o_dv, o_c = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_C)
    p_q += i_b * stride_qb + i_h * stride_qh + (first_q + first) * stride_qm
    p_grad += i_b * stride_gb + i_h * stride_gh + (first_q + first) * stride_gm
    o_q_rows, o_grad_rows = o_own * stride_qm, o_own * stride_gm
    o_k_rows, o_v_rows = o_in * stride_kn, o_in * stride_vn
    if not SLICED:
        b_q = load_rows(p_q, o_q_rows, o_d, None, D, D != BLOCK_D)  # [BLOCK_M, BLOCK_D]
        b_grad = load_rows(p_grad, o_grad_rows, o_dv, None, DV, DV != BLOCK_DV)
    o_stats = i_b * stride_lb + i_h * stride_lh + first_q + o_m
    b_log, b_delta = tl.load(p_log + o_stats), tl.load(p_delta + o_stats)
    b_rest = None
    if p_rest is not None:
        b_rest = tl.load(p_rest + o_stats)[:, None]

    i_kv = i_h // (heads // heads_kv)
    p_k += i_b * stride_kb + i_kv * stride_kh + first_k * stride_kn
    p_v += i_b * stride_vb + i_kv * stride_vh + first_k * stride_vn
    slope = None
    if p_slopes is not None:
        slope = tl.load(p_slopes + i_b * stride_sb + i_h) * LOG2E
    if p_bias is not None:
        p_bias += i_b * stride_bb + i_h * stride_bh + first.to(tl.int64) * stride_bm

    diagonal = len_k - len_q  # query i stands at key i + diagonal
    last = tl.minimum(first + BLOCK_M, len_q) - 1
    t_seen, t_whole, t_whole_end, t_seen_end = visible_tiles(
        first + diagonal, last + diagonal, len_k, window_left, window_right, BLOCK_N
    )
    b_grad_q = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    # Tiles that need no mask come first.
    for EDGE in tl.static_range(2):
        whole_tiles = t_whole_end - t_whole
        for t in tl.range(0, t_seen_end - t_seen - whole_tiles if EDGE else whole_tiles):
            if EDGE:
                t_n = t_seen + t + tl.where(t_seen + t < t_whole, 0, whole_tiles)
            else:
                t_n = t_whole + t
            o_key = t_n * BLOCK_N + o_n  # [BLOCK_N]
            o_first = (t_n * BLOCK_N).to(tl.int64)
            p_k_tile = p_k + o_first * stride_kn
            p_v_tile = p_v + o_first * stride_vn
            m_key, m_s, p_bias_tile, m_bias = None, None, None, None
            if EDGE:
                m_key = o_key < len_k
                m_s = attended(
                    m_key[None, :], o_m[:, None], o_key[None, :], diagonal,
                    window_left, window_right,
                )  # fmt: skip
                m_bias = m_key[None, :]
            if p_bias is not None:  # [BLOCK_M, BLOCK_N]
                p_bias_tile = p_bias + o_first * stride_bn
                p_bias_tile += (o_own * stride_bm)[:, None] + (o_in * stride_bn)[None, :]
            if SLICED:  # [BLOCK_M, BLOCK_N]
                b_s = sliced_products(
                    p_q, o_q_rows, p_k_tile, o_k_rows, m_key,
                    D, STEP_D, BLOCK_M, BLOCK_N, PRECISION,
                )  # fmt: skip
                b_dp = sliced_products(
                    p_grad, o_grad_rows, p_v_tile, o_v_rows, m_key,
                    DV, STEP_DV, BLOCK_M, BLOCK_N, PRECISION,
                )  # fmt: skip
            else:
                b_k = load_rows(p_k_tile, o_k_rows, o_d, m_key, D, D != BLOCK_D)
                b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
                b_v = load_rows(p_v_tile, o_v_rows, o_dv, m_key, DV, DV != BLOCK_DV)
                b_dp = tl.dot(b_grad, tl.trans(b_v), input_precision=PRECISION)
            _b_p, b_ds = score_gradients(
                b_s, b_dp, b_log[:, None], b_rest, b_delta[:, None], m_s, p_bias_tile, m_bias,
                o_m[:, None], o_key[None, :], diagonal, slope, scale, softcap,
                THROUGH_CAP=True,
            )  # fmt: skip
            if SLICED or PARTS > 1:  # [BLOCK_N, BLOCK_C]
                cols, p_part = D - first_d, p_k_tile + first_d
                b_k = load_rows(p_part, o_k_rows, o_c, m_key, cols, D != PARTS * BLOCK_C)
            b_grad_q = tl.dot(b_ds.to(b_k.dtype), b_k, b_grad_q, input_precision=PRECISION)

    # A query that attends nothing has no gradient, whatever NaN it would meet.
    b_grad_q = tl.where((b_log == float("-inf"))[:, None], 0.0, b_grad_q * scale)
    p_grad_q += (first_q + first) * stride_gqm
    store_rows(p_grad_q, o_q, o_c, stride_gqm, o_q < len_q - first, D - first_d, b_grad_q)
