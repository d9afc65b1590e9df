"""The gradients of keys and values: a program owns BLOCK_N keys of one key-value head.

It walks over the queries, of all the heads of its group, that attend to them.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .backward_scores import (
    attended,
    load_rows,
    load_some,
    score_gradients,
    sequences,
    sliced_products,
    store_nan,
    store_rows,
)
from .scores import LOG2E, visible_tiles

COUNTS = [
    "stride_lb", "stride_lh", "batch", "heads", "heads_kv", "tokens_q", "tokens_k", "longest_q",
    "longest_k", "window_left", "window_right",
]  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def attention_backward_keys(
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
    p_grad_k, p_grad_v,
    stride_gkb, stride_gkh, stride_gkn,
    stride_gvb, stride_gvh, stride_gvn,
    D: tl.constexpr, DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    STEP_D: tl.constexpr, STEP_DV: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_CV: tl.constexpr, PARTS: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The products q·k and dO·v are taken STEP_D and STEP_DV elements of a head at a time. The
    gradients of one key are cut into PARTS of BLOCK_C and BLOCK_CV columns, each of a program that
    makes the same scores."""
    SLICED: tl.constexpr = STEP_D != BLOCK_D or STEP_DV != BLOCK_DV

    blocks = tl.cdiv(longest_k, BLOCK_N)
    pid = tl.program_id(0)
    i_n = pid % blocks  # of a causal problem, the first keys meet the most queries and come first
    i_part = pid // blocks % PARTS
    i_kv = (pid // blocks // PARTS % heads_kv).to(tl.int64)
    i_b = (pid // blocks // PARTS // heads_kv).to(tl.int64)
    first_d, first_dv = i_part * BLOCK_C, i_part * BLOCK_CV
    p_grad_k += i_b * stride_gkb + i_kv * stride_gkh + first_d
    p_grad_v += i_b * stride_gvb + i_kv * stride_gvh + first_dv
    first_q, len_q, first_k, len_k, right = sequences(
        p_starts_q, p_starts_k, i_b, batch, tokens_q, tokens_k, longest_q, longest_k
    )
    if p_starts_k is not None:
        if i_n * BLOCK_N >= len_k:
            return
        if not right:
            store_nan(
                p_grad_k, first_k, len_k, stride_gkn, D - first_d, i_n, blocks, BLOCK_N, BLOCK_C
            )
            store_nan(
                p_grad_v, first_k, len_k, stride_gvn, DV - first_dv, i_n, blocks, BLOCK_N, BLOCK_CV
            )
            return

    # Keys past the end repeat the last one: only the stores need a mask.
    first = i_n * BLOCK_N
    o_n, o_q = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    o_own = tl.minimum(o_n, len_k - 1 - first)  # [BLOCK_N]
    o_key = first + o_own
    if WIDE:  # 32-bit offsets inside a tile save registers
        o_own, o_q = o_own.to(tl.int64), o_q.to(tl.int64)
    o_d, o_dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    o_c, o_cv = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_CV)
    p_k += i_b * stride_kb + i_kv * stride_kh + (first_k + first) * stride_kn
    p_v += i_b * stride_vb + i_kv * stride_vh + (first_k + first) * stride_vn
    o_k_rows, o_v_rows = o_own * stride_kn, o_own * stride_vn
    o_q_rows, o_grad_rows = o_q * stride_qm, o_q * stride_gm
    if not SLICED:
        b_k = load_rows(p_k, o_k_rows, o_d, None, D, D != BLOCK_D)  # [BLOCK_N, BLOCK_D]
        b_v = load_rows(p_v, o_v_rows, o_dv, None, DV, DV != BLOCK_DV)  # [BLOCK_N, BLOCK_DV]

    diagonal = len_k - len_q  # query i stands at key i + diagonal
    last = tl.minimum(first + BLOCK_N, len_k) - 1
    # Seen from the keys, the window is the other way round.
    t_seen, t_whole, t_whole_end, t_seen_end = visible_tiles(
        first - diagonal, last - diagonal, len_q, window_right, window_left, BLOCK_M
    )

    b_grad_k = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    b_grad_v = tl.zeros([BLOCK_N, BLOCK_CV], tl.float32)
    group = heads // heads_kv
    # Tiles that need no mask come first.
    for EDGE in tl.static_range(2):
        whole_tiles = t_whole_end - t_whole
        tiles = t_seen_end - t_seen - whole_tiles if EDGE else whole_tiles
        for i in tl.range(0, group * tiles):
            t = i % tiles
            i_h = i_kv * group + i // tiles
            if EDGE:
                t_m = t_seen + t + tl.where(t_seen + t < t_whole, 0, whole_tiles)
            else:
                t_m = t_whole + t
            o_m = t_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
            o_first = first_q + t_m * BLOCK_M
            o_stats = i_b * stride_lb + i_h * stride_lh + o_first + tl.arange(0, BLOCK_M)
            p_q_tile = p_q + i_b * stride_qb + i_h * stride_qh + o_first * stride_qm
            p_grad_tile = p_grad + i_b * stride_gb + i_h * stride_gh + o_first * stride_gm
            slope = None
            if p_slopes is not None:
                slope = tl.load(p_slopes + i_b * stride_sb + i_h) * LOG2E
            m_row, m_live, m_s, p_bias_tile, m_bias = None, None, None, None, None
            if EDGE:
                m_row = o_m < len_q
            b_log = load_some(p_log + o_stats, m_row, float("-inf"))
            b_delta = load_some(p_delta + o_stats, m_row, 0.0)
            b_rest = None
            if p_rest is not None:
                b_rest = load_some(p_rest + o_stats, m_row, 0.0)[None, :]
            if EDGE or p_bias is not None:
                # Queries that attend nothing are read as zeros, for they may hold NaN.
                m_live = b_log != float("-inf")
                m_s = m_live[None, :]
            if EDGE:
                m_s = attended(
                    m_s, o_m[None, :], o_key[:, None], diagonal, window_left, window_right
                )
            if p_bias is not None:  # [BLOCK_N, BLOCK_M]
                p_bias_tile = p_bias + i_b * stride_bb + i_h * stride_bh
                p_bias_tile += first.to(tl.int64) * stride_bn
                p_bias_tile += (t_m * BLOCK_M).to(tl.int64) * stride_bm
                p_bias_tile += (o_own * stride_bn)[:, None] + (o_q * stride_bm)[None, :]
                if EDGE:
                    m_bias = (o_m < len_q)[None, :]
            if SLICED:  # [BLOCK_N, BLOCK_M]
                b_s = sliced_products(
                    p_k, o_k_rows, p_q_tile, o_q_rows, m_live,
                    D, STEP_D, BLOCK_N, BLOCK_M, PRECISION,
                )  # fmt: skip
                b_dp = sliced_products(
                    p_v, o_v_rows, p_grad_tile, o_grad_rows, m_live,
                    DV, STEP_DV, BLOCK_N, BLOCK_M, PRECISION,
                )  # fmt: skip
            else:
                b_q = load_rows(p_q_tile, o_q_rows, o_d, m_live, D, D != BLOCK_D)
                b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)
                b_grad = load_rows(p_grad_tile, o_grad_rows, o_dv, m_live, DV, DV != BLOCK_DV)
                b_dp = tl.dot(b_v, tl.trans(b_grad), input_precision=PRECISION)
            b_p, b_ds = score_gradients(
                b_s, b_dp, b_log[None, :], b_rest, b_delta[None, :], m_s, p_bias_tile, m_bias,
                o_m[None, :], o_key[:, None], diagonal, slope, scale, softcap,
                THROUGH_CAP=True,
            )  # fmt: skip
            if SLICED or PARTS > 1:  # [BLOCK_M, BLOCK_C] and [BLOCK_M, BLOCK_CV]
                cols, p_part = D - first_d, p_q_tile + first_d
                b_q = load_rows(p_part, o_q_rows, o_c, m_live, cols, D != PARTS * BLOCK_C)
                cols, p_part = DV - first_dv, p_grad_tile + first_dv
                b_grad = load_rows(p_part, o_grad_rows, o_cv, m_live, cols, DV != PARTS * BLOCK_CV)
            b_grad_v = tl.dot(b_p.to(b_grad.dtype), b_grad, b_grad_v, input_precision=PRECISION)
            b_grad_k = tl.dot(b_ds.to(b_q.dtype), b_q, b_grad_k, input_precision=PRECISION)

    p_grad_k += (first_k + first) * stride_gkn
    p_grad_v += (first_k + first) * stride_gvn
    m_own = o_n < len_k - first
    store_rows(p_grad_k, o_n, o_c, stride_gkn, m_own, D - first_d, b_grad_k * scale)
    store_rows(p_grad_v, o_n, o_cv, stride_gvn, m_own, DV - first_dv, b_grad_v)
