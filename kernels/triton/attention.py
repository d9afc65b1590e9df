"""Attention forward as one fused Triton kernel.

A program owns BLOCK_M rows of queries and walks over the keys BLOCK_N at a time with an online
softmax (Milakov and Gimelshein 2018; Dao 2023, FlashAttention-2). When the queries are too few to
fill a tile, as in decoding, all the heads that share a key-value head are packed into its rows, so
that keys and values are read once for the whole group.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import triton
import triton.language as tl

from . import check, target
from .activation import tanh

LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2.0))


@triton.jit
def load_slice(p_rows, o_col, cols, CUT_COLS: tl.constexpr):
    """The same columns of every row pointed at. What lies outside reads as zero."""
    p_elements = p_rows[:, None] + o_col[None, :]
    if CUT_COLS:
        return tl.load(p_elements, mask=(o_col < cols)[None, :], other=0.0)
    return tl.load(p_elements)


@triton.jit
def load_tile(
    p_tile, o_row, o_col, stride, rows, cols, CUT_ROWS: tl.constexpr, CUT_COLS: tl.constexpr
):
    """A tile of a matrix whose rows are contiguous. What lies outside reads as zero."""
    p_elements = p_tile + o_row[:, None] * stride + o_col[None, :]
    if CUT_ROWS and CUT_COLS:
        m_inside = (o_row < rows)[:, None] & (o_col < cols)[None, :]
        return tl.load(p_elements, mask=m_inside, other=0.0)
    if CUT_ROWS:
        return tl.load(p_elements, mask=(o_row < rows)[:, None], other=0.0)
    if CUT_COLS:
        return tl.load(p_elements, mask=(o_col < cols)[None, :], other=0.0)
    return tl.load(p_elements)


@triton.jit
def finite_pivot(b_max):
    """What to subtract from scores before exp2: their maximum, but never inf - inf. A row that has
    seen nothing keeps a sum of 0, and one with a score of +inf gets an infinite one."""
    return tl.where(tl.abs(b_max) == float("inf"), 0.0, b_max)


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
    if p_bias is not None:
        p_bias_rows = p_bias + i_b * stride_bb + o_h * stride_bh + o_m.to(tl.int64) * stride_bm
    if p_slopes is not None:
        b_slope = tl.load(p_slopes + i_b * stride_sb + o_h) * LOG2E  # [BLOCK_M]

    # Scores are in units of log 2 from here on.
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)

    # Keys [seen, seen_end) are visible to some row of the block, [whole, whole_end) to all of them.
    diagonal = len_k - len_q  # query i stands at key i + diagonal
    first = i_m * BLOCK_M // pack + diagonal
    last = tl.minimum(i_m * BLOCK_M + BLOCK_M - 1, rows - 1) // pack + diagonal
    seen, seen_end, whole, whole_end = 0, len_k, 0, len_k
    if window_left is not None:
        seen = tl.maximum(first - window_left, 0)
        whole = tl.maximum(last - window_left, 0)
    if window_right is not None:
        seen_end = tl.maximum(tl.minimum(last + window_right + 1, len_k), seen)
        whole_end = tl.maximum(tl.minimum(first + window_right + 1, len_k), 0)
    # The same in tiles: [t_seen, t_whole) and [t_whole_end, t_seen_end) need a mask, those between
    # need none and come first.
    t_seen = seen // BLOCK_N
    t_seen_end = tl.cdiv(seen_end, BLOCK_N)
    t_whole = tl.minimum(tl.cdiv(whole, BLOCK_N), t_seen_end)
    t_whole_end = tl.maximum(whole_end // BLOCK_N, t_whole)

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
                if softcap is not None:
                    b_s = tanh(b_s * (scale / softcap)) * (softcap * LOG2E)
                else:
                    b_s = b_s * (scale * LOG2E)
                if p_slopes is not None:
                    o_apart = tl.abs(o_m[:, None] + diagonal - o_key[None, :])
                    b_s -= b_slope[:, None] * o_apart.to(tl.float32)
                if p_bias is not None:
                    # [BLOCK_M, BLOCK_N]
                    o_bias = (o_key.to(tl.int64) if WIDE else o_key) * stride_bn
                    p_elements = p_bias_rows[:, None] + o_bias[None, :]
                    if EDGE:
                        b_bias = tl.load(p_elements, mask=(o_key < len_k)[None, :], other=0)
                    else:
                        b_bias = tl.load(p_elements)
                    if p_bias.dtype.element_ty == tl.uint8:
                        b_s = tl.where(b_bias != 0, b_s, float("-inf"))
                    else:
                        b_s += b_bias.to(tl.float32) * LOG2E
            if EDGE:
                m_s = (o_key < len_k)[None, :]
                if window_left is not None:
                    m_s = m_s & (o_key[None, :] >= o_m[:, None] + (diagonal - window_left))
                if window_right is not None:
                    m_s = m_s & (o_key[None, :] <= o_m[:, None] + (diagonal + window_right))
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
        # A key that every live row sees, whose value is zero. A dead row has a sum of zero.
        b_sink = tl.load(p_sinks + o_h).to(tl.float32) * LOG2E  # [BLOCK_M]
        b_new = tl.maximum(b_max, b_sink)
        b_decay = tl.exp2(b_max - finite_pivot(b_new))
        b_all = b_sum * b_decay + tl.exp2(b_sink - finite_pivot(b_new))
        b_sum = tl.where(b_sum == 0.0, 0.0, b_all)
        b_acc = tl.where(b_sum == 0.0, 0.0, b_decay)[:, None] * b_acc
        b_max = b_new
    b_out = b_acc / tl.where(b_sum == 0.0, 1.0, b_sum)[:, None]  # [BLOCK_M, BLOCK_DV]
    b_lse = (b_max + tl.log2(b_sum)) * LN2  # [BLOCK_M]
    m_row = i_m * BLOCK_M + tl.arange(0, BLOCK_M) < rows
    o_out = (i_b * heads + o_h) * len_q + o_m
    p_elements = p_out + (o_out * DV)[:, None] + o_dv[None, :]
    m_out = m_row[:, None] & (o_dv < DV)[None, :]
    tl.store(p_elements, b_out.to(p_out.dtype.element_ty), mask=m_out)
    tl.store(p_lse + o_out, b_lse, mask=m_row)


@dataclass(frozen=True)
class Tile:
    """Rows of queries, keys at a time, warps, tiles of keys and values in flight, and the slice of
    the head size that one product takes."""

    m: int
    n: int
    warps: int
    stages: int
    d: int = 512


MAX_HEAD_SIZE = 512

# Per architecture, bytes of an element and padded head size: tiles for bare scores, for scores that
# a softcap, slopes or a bias change (which live in registers beside the product), and for few
# queries (decoding). Each is the largest tried that compiles without a spill with every option on.
TILES: dict[str, dict[int, dict[int, dict[str, Tile]]]] = {
    "sm_80": {
        2: {
            64: {
                "bare": Tile(128, 128, 8, 2),
                "scored": Tile(128, 64, 8, 3),
                "few": Tile(16, 128, 4, 3),
            },
            128: {
                "bare": Tile(128, 64, 8, 3),
                "scored": Tile(128, 32, 8, 3),
                "few": Tile(16, 64, 4, 3),
            },
            256: {
                "bare": Tile(64, 32, 8, 2),
                "scored": Tile(64, 32, 8, 2),
                "few": Tile(16, 64, 4, 2),
            },
            512: {
                "bare": Tile(64, 32, 8, 2, 64),
                "scored": Tile(64, 16, 8, 2, 128),
                "few": Tile(16, 32, 8, 2),
            },
        },
        4: {
            64: {
                "bare": Tile(64, 16, 8, 2),
                "scored": Tile(64, 16, 8, 2),
                "few": Tile(16, 64, 4, 3),
            },
            128: {
                "bare": Tile(32, 32, 8, 2),
                "scored": Tile(32, 32, 8, 2),
                "few": Tile(16, 32, 4, 2),
            },
            256: {
                "bare": Tile(32, 32, 8, 2, 32),
                "scored": Tile(32, 32, 8, 2, 32),
                "few": Tile(16, 32, 8, 2, 64),
            },
            512: {
                "bare": Tile(32, 16, 8, 2, 64),
                "scored": Tile(16, 16, 8, 2, 64),
                "few": Tile(16, 16, 8, 2, 64),
            },
        },
    },
    "sm_90": {
        2: {
            64: {
                "bare": Tile(128, 128, 8, 2),
                "scored": Tile(128, 64, 8, 3),
                "few": Tile(16, 128, 4, 3),
            },
            128: {
                "bare": Tile(128, 64, 8, 3),
                "scored": Tile(128, 64, 8, 3),
                "few": Tile(16, 64, 4, 3),
            },
            256: {
                "bare": Tile(128, 32, 8, 2),
                "scored": Tile(64, 32, 8, 2),
                "few": Tile(16, 32, 4, 2),
            },
            512: {
                "bare": Tile(64, 32, 8, 2, 128),
                "scored": Tile(64, 32, 8, 2, 64),
                "few": Tile(16, 32, 8, 2),
            },
        },
        4: {
            64: {
                "bare": Tile(128, 32, 8, 2),
                "scored": Tile(128, 32, 8, 2),
                "few": Tile(16, 64, 4, 3),
            },
            128: {
                "bare": Tile(32, 32, 8, 2),
                "scored": Tile(32, 32, 8, 2),
                "few": Tile(16, 32, 4, 2),
            },
            256: {
                "bare": Tile(32, 32, 8, 2, 32),
                "scored": Tile(32, 32, 8, 2, 32),
                "few": Tile(16, 32, 8, 2, 64),
            },
            512: {
                "bare": Tile(16, 16, 8, 2, 64),
                "scored": Tile(16, 16, 8, 2, 64),
                "few": Tile(16, 16, 8, 2, 64),
            },
        },
    },
    "sm_100": {
        2: {
            64: {
                "bare": Tile(128, 128, 8, 2),
                "scored": Tile(128, 64, 8, 3),
                "few": Tile(16, 128, 4, 3),
            },
            128: {
                "bare": Tile(128, 64, 8, 3),
                "scored": Tile(128, 64, 8, 3),
                "few": Tile(16, 64, 4, 3),
            },
            256: {
                "bare": Tile(128, 32, 8, 2),
                "scored": Tile(64, 32, 8, 2),
                "few": Tile(16, 32, 4, 2),
            },
            512: {
                "bare": Tile(64, 32, 8, 2, 64),
                "scored": Tile(64, 32, 8, 2, 64),
                "few": Tile(16, 32, 8, 2, 128),
            },
        },
        4: {
            64: {
                "bare": Tile(64, 16, 8, 2),
                "scored": Tile(64, 16, 8, 2),
                "few": Tile(16, 64, 4, 3),
            },
            128: {
                "bare": Tile(64, 32, 8, 2, 32),
                "scored": Tile(64, 32, 8, 2, 32),
                "few": Tile(16, 32, 4, 2),
            },
            256: {
                "bare": Tile(64, 32, 8, 2, 32),
                "scored": Tile(64, 32, 8, 2, 32),
                "few": Tile(16, 32, 8, 2, 64),
            },
            512: {
                "bare": Tile(16, 16, 8, 2, 64),
                "scored": Tile(16, 16, 8, 2, 64),
                "few": Tile(16, 16, 8, 2, 64),
            },
        },
    },
    "gfx942": {
        2: {
            64: {
                "bare": Tile(128, 64, 4, 1),
                "scored": Tile(128, 32, 4, 1),
                "few": Tile(16, 64, 4, 1),
            },
            128: {
                "bare": Tile(128, 32, 4, 1),
                "scored": Tile(64, 32, 4, 1),
                "few": Tile(16, 32, 4, 1),
            },
            256: {
                "bare": Tile(64, 16, 4, 1),
                "scored": Tile(64, 16, 4, 1),
                "few": Tile(16, 32, 4, 1, 64),
            },
            512: {
                "bare": Tile(64, 16, 8, 1, 64),
                "scored": Tile(64, 16, 8, 1, 64),
                "few": Tile(16, 32, 4, 1, 64),
            },
        },
        4: {
            64: {
                "bare": Tile(128, 32, 4, 1),
                "scored": Tile(128, 32, 4, 1),
                "few": Tile(16, 64, 4, 1),
            },
            128: {
                "bare": Tile(64, 32, 4, 1),
                "scored": Tile(64, 16, 4, 1),
                "few": Tile(16, 32, 4, 1),
            },
            256: {
                "bare": Tile(64, 16, 4, 1, 64),
                "scored": Tile(64, 16, 4, 1, 64),
                "few": Tile(16, 32, 4, 1, 64),
            },
            512: {
                "bare": Tile(64, 16, 8, 1, 64),
                "scored": Tile(64, 16, 8, 1, 64),
                "few": Tile(16, 32, 4, 1, 64),
            },
        },
    },
}


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
) -> None:
    op = "attention"
    for name, x in (("q", q), ("k", k), ("v", v)):
        check.require_device(op, name, x, q.device)
        check.require_floating(op, name, x)
        check.require(
            x.dtype == q.dtype,
            op,
            f"{name} must have q's dtype {check.name_of(q.dtype)}, got {check.name_of(x.dtype)}",
        )
        check.require_rank(op, name, x, 4)
        check.require_same(op, name, "batch size", x.size(0), "q", q.size(0))
        check.require(
            1 <= x.size(3) <= MAX_HEAD_SIZE,
            op,
            f"{name} must have a head size from 1 to {MAX_HEAD_SIZE}, got {x.size(3)}",
        )
        check.require_unit_stride(op, name, x)
    check.require_same(op, "k", "head size", k.size(3), "q", q.size(3))
    check.require(
        q.size(1) % k.size(1) == 0 if k.size(1) else q.size(1) == 0,
        op,
        f"k has {k.size(1)} heads, which does not divide q's {q.size(1)}",
    )
    check.require(
        v.size(1) == k.size(1), op, f"v has {v.size(1)} heads, which is not k's {k.size(1)}"
    )
    check.require(
        v.size(2) == k.size(2), op, f"v has {v.size(2)} tokens, which is not k's {k.size(2)}"
    )
    batch, heads = q.shape[:2]
    if bias is not None:
        check.require_device(op, "bias", bias, q.device)
        check.require(
            bias.dtype == torch.bool or bias.dtype in check.FLOATING,
            op,
            f"bias must be bool, float32, bfloat16 or float16, got {check.name_of(bias.dtype)}",
        )
        shape, scores = list(bias.shape), [batch, heads, q.size(2), k.size(2)]
        check.require(
            bias.dim() <= 4, op, f"bias must have at most 4 dimensions, got shape {shape}"
        )
        check.require(
            all(b in (1, s) for b, s in zip(shape[::-1], scores[::-1], strict=False)),
            op,
            f"bias of shape {shape} does not broadcast to {scores}",
        )
    if sinks is not None:
        check.require_device(op, "sinks", sinks, q.device)
        check.require_floating(op, "sinks", sinks)
        check.require(
            list(sinks.shape) == [heads],
            op,
            f"sinks must have shape {[heads]}, got {list(sinks.shape)}",
        )
    if alibi_slopes is not None:
        check.require_device(op, "alibi_slopes", alibi_slopes, q.device)
        check.require_dtype(op, "alibi_slopes", alibi_slopes, torch.float32)
        shape = list(alibi_slopes.shape)
        check.require(
            shape in ([heads], [batch, heads]),
            op,
            f"alibi_slopes must have shape {[heads]} or {[batch, heads]}, got {shape}",
        )


def _check_options(window_left: int, window_right: int, softcap: float, scale: float) -> None:
    op = "attention"
    for name, window in (("window_left", window_left), ("window_right", window_right)):
        check.require(window >= -1, op, f"{name} must be at least -1, got {window}")
    check.require_finite(op, "softcap", softcap)
    check.require(softcap >= 0, op, f"softcap must not be negative, got {softcap:g}")
    check.require(
        softcap == 0 or 1e-30 <= softcap <= 1e30,
        op,
        f"softcap must be 0 or between 1e-30 and 1e30, got {softcap:g}",
    )
    check.require_finite(op, "scale", scale)


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
    _check(q, k, v, bias, sinks, alibi_slopes)
    scale = q.size(3) ** -0.5 if scale is None else scale
    _check_options(window_left, window_right, softcap, scale)
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

    tiles = TILES[architecture.name][q.element_size()][max(64, block_d, block_dv)]
    tile, pack = tiles["bare" if bare else "scored"], 1
    if len_q <= tiles["few"].m:
        tile, pack = tiles["few"], group
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
