"""attention_varlen: sequences of unequal lengths, packed one behind the other."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Options, Sequences, attend
from .problem import check_packed


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`attention` of every sequence by itself.

    Args:
        q: [Tq, H, D], k: [Tk, Hkv, D], v: [Tk, Hkv, Dv], float32, bfloat16 or float16, innermost
            stride 1; H is a multiple of Hkv.
        cu_seqlens_q, cu_seqlens_k: [B + 1], int32 or int64: 0 and the running sums of the lengths.
        max_seqlen_q, max_seqlen_k: at least the longest sequence's tokens. A tight one of q saves
            programs that find nothing to do.
        bias: broadcasts to [B, H, max_seqlen_q, max_seqlen_k].
        sinks, alibi_slopes, causal, window_left, window_right, softcap, scale: as in `attention`.

    Returns:
        out [Tq, H, Dv] in q's dtype, and lse [H, Tq] float32. Of a sequence whose starts are wrong
        both are NaN, unless LANEWISE_CHECK_INDEXES is 1.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, rank, shape, stride or value; with
            LANEWISE_CHECK_INDEXES=1 also where the starts are wrong.
    """
    check_packed(
        "attention_varlen",
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        bias,
        sinks,
        alibi_slopes,
    )
    (tokens_q, heads), (tokens_k, heads_kv, size_v) = q.shape[:2], v.shape
    out = q.new_empty(tokens_q, heads, size_v)
    lse = q.new_empty(heads, tokens_q, dtype=torch.float32)
    sequences = Sequences(
        cu_seqlens_q.size(0) - 1,
        heads_kv,
        min(max_seqlen_q, tokens_q),
        min(max_seqlen_k, tokens_k),
        tokens_q,
        tokens_k,
        (0, q.stride(1), q.stride(0)),
        (0, k.stride(1), k.stride(0)),
        (0, v.stride(1), v.stride(0)),
        cu_seqlens_q.contiguous(),
        cu_seqlens_k.contiguous(),
    )
    options = Options(bias, sinks, alibi_slopes, causal, window_left, window_right, softcap, scale)
    attend("attention_varlen", q, k, v, out, lse, sequences, options)
    return out, lse
