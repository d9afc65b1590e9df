"""Attention forward as one fused Triton kernel, for padded, packed and paged sequences.

A program owns BLOCK_M rows of queries and walks over the keys BLOCK_N at a time with an online
softmax (Milakov and Gimelshein 2018; Dao 2023, FlashAttention-2). When the queries are too few to
fill a tile, as in decoding, all the heads that share a key-value head are packed into its rows, so
that keys and values are read once for the whole group; when programs are too few to fill the GPU,
the keys of each are cut into pieces for several programs, whose sums `merge` joins (Dao et al.
2023, Flash-Decoding).
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .scores import (
    LOG2E,
    finite_pivot,
    load_rows,
    load_slice,
    modified,
    visible,
    visible_tiles,
)
from .sequences import find_pages, owned_tokens, rows_of
from .softmax import finished, with_sink


@triton.jit
def store_rows(
    p_out, p_lse, p_sum, b_out, b_lse, b_sum, first_q, i_b, o_m, o_h, m_row, i_split,
    tokens_q, heads, len_q, PACKED: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Query `o_m` of head `o_h`, [BLOCK_M]. With `p_sum` these are sums over one piece of the keys:
    out is not normalised yet, and the maximum takes the place of lse."""
    if PACKED:
        o_out = (first_q + o_m).to(tl.int64) * heads + o_h
        o_lse = o_h.to(tl.int64) * tokens_q + first_q + o_m
    else:
        o_out = (i_b.to(tl.int64) * heads + o_h) * len_q + o_m
        o_lse = o_out
    if p_sum is not None:
        o_out += i_split.to(tl.int64) * tokens_q * heads
        o_lse = o_out
        tl.store(p_sum + o_lse, b_sum, mask=m_row)
    o_dv = tl.arange(0, BLOCK_DV)
    m_out = m_row[:, None] & (o_dv < DV)[None, :]
    p_elements = p_out + (o_out * DV)[:, None] + o_dv[None, :]
    tl.store(p_elements, b_out.to(p_out.dtype.element_ty), mask=m_out)
    tl.store(p_lse + o_lse, b_lse, mask=m_row)


@triton.jit(
    do_not_specialize=[
        "batch", "heads", "group", "splits", "least", "tokens_q", "tokens_k", "len_q", "len_k",
        "pages", "window_left", "window_right",
    ]
)  # fmt: skip
def attention_forward(
    p_q, p_k, p_v, p_bias, p_sinks, p_slopes, p_out, p_lse, p_sum,
    p_starts_q, p_starts_k, p_contexts, p_table,
    stride_qb, stride_qh, stride_qm,
    stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    stride_bb, stride_bh, stride_bm, stride_bn,
    stride_sb, stride_tb,
    batch, heads, group, pack, splits, least, tokens_q, tokens_k, len_q, len_k, pages,
    scale, softcap, window_left, window_right,
    D: tl.constexpr, DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, STEP_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    PAGE: tl.constexpr, MIXED: tl.constexpr,
    FUSED_SCALE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`tokens_q` and `tokens_k` count the tokens of all sequences. With `p_starts_q` the queries
    are packed, and `len_q` and `len_k` only bound the lengths of sequences; with `p_table` the keys
    lie in `pages` of PAGE tokens, whose strides are `stride_kb` and `stride_vb`.

    `pack` heads share a program; with MIXED all those of a group do where a sequence is short.
    `splits` programs share the keys of a row, and each takes at least `least` tiles of them.
    """
    blocks = tl.cdiv(len_q * pack, BLOCK_M)
    pid = tl.program_id(0)
    # The last rows of a causal problem see the most keys: the longest program of a head goes first.
    i_m = blocks - 1 - pid % blocks
    i_split = pid // blocks % splits
    # What lives through the loop stays narrow: offsets widen where they are multiplied.
    i_b = pid // blocks // splits // (heads // pack)
    i_h = pid // blocks // splits % (heads // pack) * pack  # the first head of this program

    # --- the sequence ---
    PACKED: tl.constexpr = p_starts_q is not None
    first_q, first_k, right = 0, 0, True
    if PACKED:
        first_q, len_q, right = owned_tokens(p_starts_q, i_b, batch, tokens_q, len_q)
    if p_starts_k is not None:
        first_k, len_k, right_k = owned_tokens(p_starts_k, i_b, batch, tokens_k, len_k)
        right = right & right_k
    if p_contexts is not None:
        context = tl.load(p_contexts + i_b)
        right = right & (context >= len_q) & (context <= len_k)
        len_k = context
    if MIXED:
        pack = tl.where(len_q * group <= BLOCK_M, group, 1)
        if i_h % pack != 0:  # another program's
            return
    rows = len_q * pack
    if i_m * BLOCK_M >= rows:
        return

    if PACKED and not right:
        # All of its rows are NaN, those beyond the bound of its length too.
        for o_first in range(i_m * BLOCK_M, rows, blocks * BLOCK_M):
            o_row = o_first + tl.arange(0, BLOCK_M)
            b_nan = tl.full([BLOCK_M], float("nan"), tl.float32)
            store_rows(
                p_out, p_lse, p_sum, tl.full([BLOCK_M, BLOCK_DV], float("nan"), tl.float32),
                b_nan, b_nan, first_q, i_b, o_row // pack, i_h + o_row % pack, o_row < rows,
                i_split, tokens_q, heads, len_q, PACKED, DV, BLOCK_DV,
            )  # fmt: skip
        return

    # --- its queries ---
    # Rows past the end repeat the last one: only the stores need a mask.
    o_row = tl.minimum(i_m * BLOCK_M + tl.arange(0, BLOCK_M), rows - 1)  # [BLOCK_M]
    o_m = o_row // pack  # [BLOCK_M] query
    o_h = i_h + o_row % pack  # [BLOCK_M] head
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, STEP_D)
    o_dv = tl.arange(0, BLOCK_DV)

    i_b64, i_h64, o_h64, o_m64 = (
        i_b.to(tl.int64), i_h.to(tl.int64), o_h.to(tl.int64), o_m.to(tl.int64),
    )  # fmt: skip
    p_rows = p_q + i_b64 * stride_qb + o_h64 * stride_qh + (first_q + o_m64) * stride_qm
    if STEP_D == BLOCK_D:
        b_q = load_slice(p_rows, o_d, D, D != BLOCK_D)  # [BLOCK_M, BLOCK_D]
    p_k += i_h64 // group * stride_kh
    p_v += i_h64 // group * stride_vh
    highest = 0
    if p_table is not None:
        p_table += i_b64 * stride_tb
        highest = tl.full([1 if PAGE % BLOCK_N == 0 else BLOCK_N], 0, tl.uint32)
    elif PACKED:
        p_k += tl.cast(first_k, tl.int64) * stride_kn
        p_v += tl.cast(first_k, tl.int64) * stride_vn
    else:
        p_k += i_b64 * stride_kb
        p_v += i_b64 * stride_vb
    o_kv = o_n.to(tl.int64) if WIDE else o_n  # 32-bit offsets inside a tile save registers
    p_bias_rows, b_slope = None, None
    if p_bias is not None:
        p_bias_rows = p_bias + i_b64 * stride_bb + o_h64 * stride_bh + o_m64 * stride_bm
    if p_slopes is not None:
        b_slope = tl.load(p_slopes + i_b64 * stride_sb + o_h) * LOG2E  # [BLOCK_M]

    # Scores are in units of log 2 from here on.
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)

    # --- its keys ---
    diagonal = len_k - len_q  # query i stands at key i + diagonal
    first = i_m * BLOCK_M // pack + diagonal
    last = tl.minimum(i_m * BLOCK_M + BLOCK_M - 1, rows - 1) // pack + diagonal
    t_seen, t_whole, t_whole_end, t_seen_end = visible_tiles(
        first, last, len_k, window_left, window_right, BLOCK_N
    )
    if p_sum is not None:
        share = tl.maximum(tl.cdiv(t_seen_end - t_seen, splits), least)
        t_seen = tl.minimum(t_seen + i_split * share, t_seen_end)
        t_seen_end = tl.minimum(t_seen + share, t_seen_end)
        t_whole = tl.minimum(tl.maximum(t_whole, t_seen), t_seen_end)
        t_whole_end = tl.minimum(tl.maximum(t_whole_end, t_whole), t_seen_end)
    # Tiles that need no mask come first.
    for EDGE in tl.static_range(2):
        whole_tiles = t_whole_end - t_whole
        for t in tl.range(0, t_seen_end - t_seen - whole_tiles if EDGE else whole_tiles):
            if EDGE:
                t_n = t_seen + t + tl.where(t_seen + t < t_whole, 0, whole_tiles)
            else:
                t_n = t_whole + t
            o_key = t_n * BLOCK_N + o_n  # [BLOCK_N]
            m_key = o_key < len_k
            page, place = None, None
            if p_table is not None:
                page, place = find_pages(p_table, t_n, o_n, len_k, PAGE, BLOCK_N)
                highest = tl.maximum(highest, page)
                page = tl.minimum(page, (pages - 1).to(tl.uint32))

            # [BLOCK_N, BLOCK_D] -> b_s [BLOCK_M, BLOCK_N]
            p_tile, o_rows = rows_of(
                p_k, page, place, t_n, o_kv, stride_kb, stride_kn, PAGE, BLOCK_N
            )
            if STEP_D == BLOCK_D:
                b_k = load_rows(p_tile, o_rows, o_d, m_key, D, EDGE, D != BLOCK_D)
                b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
            else:  # the queries of a large head do not fit the registers: multiply it in slices
                b_s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
                for d in tl.range(0, BLOCK_D, STEP_D):
                    cols = D - d
                    b_qd = load_slice(p_rows + d, o_d, cols, D != BLOCK_D)  # [BLOCK_M, STEP_D]
                    b_kd = load_rows(p_tile + d, o_rows, o_d, m_key, cols, EDGE, D != BLOCK_D)
                    b_s = tl.dot(b_qd, tl.trans(b_kd), b_s, input_precision=PRECISION)
            if FUSED_SCALE:
                # The scale is positive and comes last: it is fused with the maximum's subtraction.
                factor = scale * LOG2E
            else:
                factor = 1.0
                b_s = modified(
                    b_s, b_slope, p_bias_rows, o_m, o_key, diagonal, len_k, stride_bn,
                    scale, softcap, HAS_SLOPES=p_slopes is not None, CUT_KEYS=EDGE, WIDE=WIDE,
                )  # fmt: skip
            if EDGE:
                m_s = visible(o_m, o_key, diagonal, len_k, window_left, window_right)
                b_s = tl.where(m_s, b_s, float("-inf"))

            b_new = tl.maximum(b_max, tl.max(b_s, 1) * factor)  # [BLOCK_M]
            b_pivot = finite_pivot(b_new)
            b_p = tl.exp2(b_s * factor - b_pivot[:, None])  # [BLOCK_M, BLOCK_N]
            b_decay = tl.exp2(b_max - b_pivot)
            b_max = b_new
            b_sum = b_sum * b_decay + tl.sum(b_p, 1)
            b_acc *= b_decay[:, None]
            # [BLOCK_N, BLOCK_DV]
            p_tile, o_rows = rows_of(
                p_v, page, place, t_n, o_kv, stride_vb, stride_vn, PAGE, BLOCK_N
            )
            b_v = load_rows(p_tile, o_rows, o_dv, m_key, DV, EDGE, DV != BLOCK_DV)
            b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision=PRECISION)

    # --- its rows of the outputs ---
    if p_table is not None:
        b_sum = tl.where(tl.max(highest, 0) < pages.to(tl.uint32), b_sum, float("nan"))
    if p_sum is not None:
        b_out, b_lse = b_acc, b_max
    else:
        if p_sinks is not None:
            b_max, b_sum, b_acc = with_sink(b_max, b_sum, b_acc, tl.load(p_sinks + o_h))
        b_out, b_lse = finished(b_max, b_sum, b_acc)
    m_row = i_m * BLOCK_M + tl.arange(0, BLOCK_M) < rows
    store_rows(
        p_out, p_lse, p_sum, b_out, b_lse, b_sum, first_q, i_b, o_m, o_h, m_row, i_split,
        tokens_q, heads, len_q, PACKED, DV, BLOCK_DV,
    )  # fmt: skip
