"""Attention over a paged cache of keys and values, and the writing of that cache."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lanewise.ops._library import ops, register_fake, register_no_gradient
from lanewise.ops.attention_varlen import fake_packed


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
    *,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`lanewise.attention` of a batch whose keys and values lie in blocks of a shared cache.

    The layout is that of PagedAttention (Kwon et al., 2023): key ``j`` of sequence ``b`` is token
    ``j % block_size`` of block ``block_table[b, j // block_size]``. Blocks may be shared by
    sequences. The queries of sequence ``b`` are ``cu_seqlens_q[b]`` to ``cu_seqlens_q[b + 1]``, and
    the last of them is aligned with the sequence's last key: prompts, chunks of them and single
    tokens may share one call.

    Args:
        q: ``[Tq, H, D]``, float32, bfloat16 or float16, D from 1 to 512. Any strides with the last
            1, here and in the caches.
        k_cache: ``[blocks, block_size, Hkv, D]``, q's dtype. H is a multiple of Hkv.
        v_cache: ``[blocks, block_size, Hkv, Dv]``, q's dtype, Dv from 1 to 512.
        cu_seqlens_q: ``[B + 1]``, int32 or int64: 0 and the running sums of the sequences' numbers
            of queries, so that the last entry is Tq.
        block_table: ``[B, max_blocks]``, int32. Entries past those that a sequence's keys need are
            never read and may be anything.
        context_lens: ``[B]``, int32: the keys of each sequence, those of its own queries included,
            which :func:`lanewise.paged_cache_write` has written before.
        max_seqlen_q: at least the most queries of a sequence; an extent of the bias.
        bias: broadcastable to ``[B, H, max_seqlen_q, max_blocks · block_size]`` and indexed by the
            places of query and key in their own sequence. Boolean: True attends. float32, bfloat16
            or float16: added to the scores.
        sinks, alibi_slopes, causal, window_left, window_right, softcap, scale: as in
            :func:`lanewise.attention`.

    Returns:
        ``out`` ``[Tq, H, Dv]`` in q's dtype and ``lse`` ``[H, Tq]`` float32. A query that may
        attend nothing gives out 0 and lse −inf. Places of the cache that no key takes are not read.

        Not differentiable: backward is an error. Autocast casts nothing here, since it would copy
        the cache.

    Raises:
        RuntimeError: on a wrong device, dtype, rank, shape, stride, head ratio or option; on a
            wrong ``cu_seqlens_q``, as in :func:`lanewise.attention_varlen`; where a context is
            negative, shorter than its queries or longer than its blocks; where an entry of the
            block table that is needed names no block.
    """
    return ops.paged_attention(
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
        causal=causal,
        window_left=window_left,
        window_right=window_right,
        softcap=softcap,
        scale=scale,
    )


@register_fake("paged_attention")
def _(
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
    **options: Any,
) -> tuple[Tensor, Tensor]:
    return fake_packed(q, v_cache.shape[3])


register_no_gradient("paged_attention")


def paged_cache_write(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor
) -> None:
    """Copies the keys and values of new tokens to their slots in a paged cache, in place.

    Args:
        k: ``[T, Hkv, D]``, float32, bfloat16 or float16. Any strides with the last 1, here and in
            the others.
        v: ``[T, Hkv, Dv]``, k's dtype.
        k_cache: ``[blocks, block_size, Hkv, D]``, k's dtype; written.
        v_cache: ``[blocks, block_size, Hkv, Dv]``, k's dtype; written.
        slots: ``[T]``, int64: ``block · block_size + place in the block`` of each token, or −1 for
            a token that is not written.

    Not differentiable, and in place: call it under ``torch.no_grad()`` or ``inference_mode()``
    where k or v come from something that requires a gradient.

    Raises:
        RuntimeError: on a wrong device, dtype, rank, shape or stride; on an expanded cache; where a
            slot lies outside the cache or two tokens have the same one; where a tensor requires a
            gradient and gradients are enabled. Nothing is written then.
    """
    ops.paged_cache_write(k, v, k_cache, v_cache, slots)


@register_fake("paged_cache_write")
def _(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    return None


register_no_gradient("paged_cache_write")
