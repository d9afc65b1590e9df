"""paged_attention: packed queries over keys and values that lie in blocks of a shared cache."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Options, Sequences, attend
from .problem import check_paged

LARGEST_INDEX = 2**31 - 1


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    max_seqlen_q: int,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`attention` of every sequence by itself; key j of sequence b is token j % block_size of block
    block_table[b, j // block_size] (Kwon et al. 2023).

    Args:
        q: [Tq, H, D], k_cache: [blocks, block_size, Hkv, D], v_cache: [blocks, block_size, Hkv,
            Dv], float32, bfloat16 or float16, innermost stride 1; H is a multiple of Hkv.
        cu_seqlens_q: [B + 1], int32 or int64: 0 and the running sums of the numbers of queries.
        block_table: [B, max_blocks], int32. Entries that no key needs are never read.
        context_lens: [B], int32: the keys of each sequence, those of its queries included.
        max_seqlen_q: at least the most queries of a sequence. A tight one saves programs that find
            nothing to do.
        bias: broadcasts to [B, H, max_seqlen_q, max_blocks · block_size].
        sinks, alibi_slopes, causal, window_left, window_right, softcap, scale: as in `attention`.

    Returns:
        out [Tq, H, Dv] in q's dtype, and lse [H, Tq] float32. Both are NaN in a sequence whose
        starts or context are wrong and in rows that meet a wrong entry of the block table, unless
        LANEWISE_CHECK_INDEXES is 1.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, rank, shape, stride or value; with
            LANEWISE_CHECK_INDEXES=1 also where an index is wrong.
    """
    check_paged(
        "paged_attention",
        q,
        k_cache,
        v_cache,
        cu_seqlens_q,
        block_table,
        context_lens,
        max_seqlen_q,
        bias,
        sinks,
        alibi_slopes,
    )
    options = Options(bias, sinks, alibi_slopes, causal, window_left, window_right, softcap, scale)
    return attend_pages(
        "paged_attention",
        q,
        k_cache,
        v_cache,
        cu_seqlens_q,
        block_table,
        context_lens,
        max_seqlen_q,
        options,
    )


def attend_pages(
    op: str,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    max_seqlen_q: int,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """`paged_attention` in the name of `op`, which has checked all tensors."""
    tokens_q, heads = q.shape[:2]
    blocks, block_size, heads_kv, size_v = v_cache.shape
    if block_table.size(1) > 1 and block_table.stride(1) != 1:
        block_table = block_table.contiguous()
    out = q.new_empty(tokens_q, heads, size_v)
    lse = q.new_empty(heads, tokens_q, dtype=torch.float32)
    sequences = Sequences(
        cu_seqlens_q.size(0) - 1,
        heads_kv,
        min(max_seqlen_q, tokens_q),
        min(block_table.size(1) * block_size, LARGEST_INDEX) if blocks else 0,
        tokens_q,
        0,
        (0, q.stride(1), q.stride(0)),
        (k_cache.stride(0), k_cache.stride(2), k_cache.stride(1)),
        (v_cache.stride(0), v_cache.stride(2), v_cache.stride(1)),
        starts_q=cu_seqlens_q.contiguous(),
        contexts=context_lens.contiguous(),
        table=block_table,
        page=block_size,
        pages=min(blocks, LARGEST_INDEX),
    )
    attend(op, q, k_cache, v_cache, out, lse, sequences, options)
    return out, lse
