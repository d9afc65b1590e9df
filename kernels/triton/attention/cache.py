"""paged_cache_write: new keys and values go to their places in a paged cache."""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

from torch import Tensor

import triton
import triton.language as tl

from .. import target
from .problem import check_write
from .tiles import WRITE


@triton.jit
def copy_rows(
    p_from, p_to, o_token, o_page, o_place, o_h, m_row,
    stride_m, stride_h, stride_page, stride_place, stride_head,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    o_d = tl.arange(0, BLOCK_D)
    m_elements = m_row[:, None] & (o_d < D)[None, :]
    o_from = o_token * stride_m + o_h * stride_h
    o_to = o_page * stride_page + o_place * stride_place + o_h * stride_head
    b = tl.load(p_from + o_from[:, None] + o_d[None, :], mask=m_elements)
    tl.store(p_to + o_to[:, None] + o_d[None, :], b, mask=m_elements)


@triton.jit(do_not_specialize=["tokens", "heads", "blocks"])
def paged_cache_write_rows(
    p_k, p_v, p_k_cache, p_v_cache, p_slots,
    stride_km, stride_kh, stride_vm, stride_vh,
    stride_kb, stride_kn, stride_kc, stride_vb, stride_vn, stride_vc,
    stride_slot, tokens, heads, blocks,
    PAGE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """A program copies BLOCK_R rows, a row being one head of one token. Slots outside the cache are
    skipped as -1 is."""
    o_row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    o_token, o_h = o_row // heads, o_row % heads
    slot = tl.load(p_slots + o_token * stride_slot, mask=o_token < tokens, other=-1)
    o_page, o_place = slot // PAGE, slot % PAGE
    m_row = (slot >= 0) & (o_page < blocks)
    copy_rows(
        p_k, p_k_cache, o_token, o_page, o_place, o_h, m_row,
        stride_km, stride_kh, stride_kb, stride_kn, stride_kc, D, BLOCK_D,
    )  # fmt: skip
    copy_rows(
        p_v, p_v_cache, o_token, o_page, o_place, o_h, m_row,
        stride_vm, stride_vh, stride_vb, stride_vn, stride_vc, DV, BLOCK_DV,
    )  # fmt: skip


def paged_cache_write(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor
) -> None:
    """Copies the keys and values of new tokens to their slots, in place.

    Args:
        k: [T, Hkv, D], v: [T, Hkv, Dv], float32, bfloat16 or float16, innermost stride 1.
        k_cache: [blocks, block_size, Hkv, D], v_cache: [blocks, block_size, Hkv, Dv], written.
        slots: [T], int64: block · block_size + place in the block, or -1 for a token that is not
            written. Other slots outside the cache are not written either, and of tokens with the
            same slot one is, unless LANEWISE_CHECK_INDEXES is 1.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, rank, shape or stride; with
            LANEWISE_CHECK_INDEXES=1 also where a slot is wrong.
    """
    check_write("paged_cache_write", k, v, k_cache, v_cache, slots)
    write(k, v, k_cache, v_cache, slots)


def write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """`paged_cache_write` of tensors that have been checked."""
    (tokens, heads, size), size_v = k.shape, v.size(2)
    if tokens * heads == 0 or k_cache.size(0) == 0:
        return
    tile = WRITE.choose(target.of(k.device), "rows")
    target.launch(
        paged_cache_write_rows,
        (target.divide_up(tokens * heads, tile.r),),
        k,
        v,
        k_cache,
        v_cache,
        slots,
        *k.stride()[:2],
        *v.stride()[:2],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        slots.stride(0),
        tokens,
        heads,
        k_cache.size(0),
        PAGE=k_cache.size(1),
        D=size,
        DV=size_v,
        BLOCK_R=tile.r,
        BLOCK_D=triton.next_power_of_2(max(size, 1)),
        BLOCK_DV=triton.next_power_of_2(max(size_v, 1)),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
