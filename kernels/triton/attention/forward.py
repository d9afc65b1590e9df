"""Attention forward as one fused Triton kernel.

A program owns BLOCK_M rows of queries and walks over the keys BLOCK_N at a time with an online
softmax (Milakov and Gimelshein 2018; Dao 2023, FlashAttention-2). When the queries are too few to
fill a tile, as in decoding, all the heads that share a key-value head are packed into its rows, so
that keys and values are read once for the whole group.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl

from .. import target
from .problem import check_options, check_tensors
from .scores import (
    LOG2E,
    finite_pivot,
    load_slice,
    load_tile,
    modified,
    visible,
    visible_tiles,
)
from .softmax import finished, with_sink
from .tiles import FEW_QUERIES, FORWARD


@triton.jit(do_not_specialize=["heads", "group", "len_q", "len_k", "window_left", "window_right"])
def attention_forward(
    p_q, p_k, p_v, p_bias, p_sinks, p_slopes, p_out, p_lse,
    stride_qb, stride_qh, stride_qm,
    stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    stride_bb, stride_bh, stride_bm, stride_bn,
    stride_sb,
    heads, group, pack, len_q, len_k,
    scale, softcap, window_left, window_right,
    D: tl.constexpr, DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, STEP_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    FUSED_SCALE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    rows = len_q * pack
    blocks = tl.cdiv(rows, BLOCK_M)
    pid = tl.program_id(0)
    # The last rows of a causal problem see the most keys: the longest program of a head goes first.
    i_m = blocks - 1 - pid % blocks
    i_b = (pid // blocks // (heads // pack)).to(tl.int64)
    i_h = (pid // blocks % (heads // pack) * pack).to(tl.int64)  # the first head of this program

    # Rows past the end repeat the last one: only the stores need a mask.
    o_row = tl.minimum(i_m * BLOCK_M + tl.arange(0, BLOCK_M), rows - 1)  # [BLOCK_M]
    o_m = o_row // pack  # [BLOCK_M] query
    o_h = i_h + o_row % pack  # [BLOCK_M] head
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, STEP_D)
    o_dv = tl.arange(0, BLOCK_DV)

    p_rows = p_q + i_b * stride_qb + o_h * stride_qh + o_m.to(tl.int64) * stride_qm
    if STEP_D == BLOCK_D:
        b_q = load_slice(p_rows, o_d, D, D != BLOCK_D)  # [BLOCK_M, BLOCK_D]
    p_k += i_b * stride_kb + i_h // group * stride_kh
    p_v += i_b * stride_vb + i_h // group * stride_vh
    o_kv = o_n.to(tl.int64) if WIDE else o_n  # 32-bit offsets inside a tile save registers
    p_bias_rows, b_slope = None, None
    if p_bias is not None:
        p_bias_rows = p_bias + i_b * stride_bb + o_h * stride_bh + o_m.to(tl.int64) * stride_bm
    if p_slopes is not None:
        b_slope = tl.load(p_slopes + i_b * stride_sb + o_h) * LOG2E  # [BLOCK_M]

    # Scores are in units of log 2 from here on.
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)

    diagonal = len_k - len_q  # query i stands at key i + diagonal
    first = i_m * BLOCK_M // pack + diagonal
    last = tl.minimum(i_m * BLOCK_M + BLOCK_M - 1, rows - 1) // pack + diagonal
    t_seen, t_whole, t_whole_end, t_seen_end = visible_tiles(
        first, last, len_k, window_left, window_right, BLOCK_N
    )
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
            left = len_k - t_n * BLOCK_N

            p_tile = p_k + o_first * stride_kn  # [BLOCK_N, BLOCK_D] -> b_s [BLOCK_M, BLOCK_N]
            if STEP_D == BLOCK_D:
                b_k = load_tile(p_tile, o_kv, o_d, stride_kn, left, D, EDGE, D != BLOCK_D)
                b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
            else:  # the queries of a large head do not fit the registers: multiply it in slices
                b_s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
                for d in tl.range(0, BLOCK_D, STEP_D):
                    cols, p_part = D - d, p_tile + d
                    b_qd = load_slice(p_rows + d, o_d, cols, D != BLOCK_D)  # [BLOCK_M, STEP_D]
                    b_kd = load_tile(p_part, o_kv, o_d, stride_kn, left, cols, EDGE, D != BLOCK_D)
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
            p_tile = p_v + o_first * stride_vn  # [BLOCK_N, BLOCK_DV]
            b_v = load_tile(p_tile, o_kv, o_dv, stride_vn, left, DV, EDGE, DV != BLOCK_DV)
            b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision=PRECISION)

    if p_sinks is not None:
        b_max, b_sum, b_acc = with_sink(b_max, b_sum, b_acc, tl.load(p_sinks + o_h))
    b_out, b_lse = finished(b_max, b_sum, b_acc)
    m_row = i_m * BLOCK_M + tl.arange(0, BLOCK_M) < rows
    o_out = (i_b * heads + o_h) * len_q + o_m
    p_elements = p_out + (o_out * DV)[:, None] + o_dv[None, :]
    m_out = m_row[:, None] & (o_dv < DV)[None, :]
    tl.store(p_elements, b_out.to(p_out.dtype.element_ty), mask=m_out)
    tl.store(p_lse + o_out, b_lse, mask=m_row)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(q @ k.T * scale, capped, biased, masked) @ v, with scores and softmax in float32.

    Args:
        q: [B, H, Sq, D], float32, bfloat16 or float16, D up to 512, innermost stride 1.
        k: [B, Hkv, Sk, D], v: [B, Hkv, Sk, Dv]: the same; H is a multiple of Hkv.
        bias: broadcasts to [B, H, Sq, Sk], any strides; bool (True attends) or floating (added).
        sinks: [H], one logit per head that takes probability and adds no value.
        alibi_slopes: [H] or [B, H] float32; adds -slope · |i + Sk - Sq - j| to query i and key j.
        causal: query i sees no key after i + Sk - Sq: the last query stands at the last key.
        window_left, window_right: how many keys before and after its own a query sees; -1 for all.
        softcap: c > 0 turns a score s into c · tanh(s / c).
        scale: 1 / sqrt(D) unless given.

    Returns:
        out [B, H, Sq, Dv] in q's dtype, and lse [B, H, Sq] float32, the natural logarithm of the
        sum of each row's exponentials. A row that may attend nothing gives 0 and -inf.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, rank, shape, stride or value.
    """
    check_tensors(q, k, v, bias, sinks, alibi_slopes)
    scale = q.size(3) ** -0.5 if scale is None else scale
    check_options(window_left, window_right, softcap, scale)
    batch, heads, len_q, size = q.shape
    heads_kv, len_k, size_v = v.shape[1:]
    out = q.new_empty(batch, heads, len_q, size_v)
    lse = q.new_empty(batch, heads, len_q, dtype=torch.float32)
    if lse.numel() == 0:
        return out, lse

    if causal:
        window_right = 0
    # A window as wide as the problem is no window; wider ones could overflow the 32-bit sums.
    widest = len_q + len_k
    bias_strides: tuple[int, ...] = (0, 0, 0, 0)
    if bias is not None:
        bias = bias.view(torch.uint8) if bias.dtype == torch.bool else bias
        bias = bias.expand(batch, heads, len_q, len_k)
        bias_strides = bias.stride()

    architecture = target.of(q.device)
    block_d, block_dv = target.block(size), target.block(size_v)
    group = heads // heads_kv
    bare = scale > 0 and softcap == 0 and bias is None and alibi_slopes is None

    kind, pack = "bare" if bare else "scored", 1
    if len_q <= FEW_QUERIES:
        kind, pack = "few", group
    size_class = max(64, block_d, block_dv)
    tile = FORWARD.choose(architecture, f"{kind} {8 * q.element_size()} {size_class}")
    target.launch(
        attention_forward,
        (target.divide_up(len_q * pack, tile.m) * (heads // pack) * batch,),
        q,
        k,
        v,
        bias,
        None if sinks is None else sinks.contiguous(),
        None if alibi_slopes is None else alibi_slopes.contiguous(),
        out,
        lse,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *bias_strides,
        heads if alibi_slopes is not None and alibi_slopes.dim() == 2 else 0,
        heads,
        group,
        pack,
        len_q,
        len_k,
        scale,
        softcap or None,
        None if window_left < 0 or window_left >= widest else window_left,
        None if window_right < 0 or window_right >= widest else window_right,
        D=size,
        DV=size_v,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_D=block_d,
        STEP_D=min(block_d, tile.d),
        BLOCK_DV=block_dv,
        FUSED_SCALE=bare,
        WIDE=max(tile.n * k.stride(2), tile.n * v.stride(2), len_k * bias_strides[3]) >= 2**31,
        PRECISION=architecture.float32_dots if q.dtype == torch.float32 else "ieee",
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out, lse
