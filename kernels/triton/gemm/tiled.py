"""The matrix product of operands of any strides: a program owns one tile of the output.

Operands are read through pointers, whatever their layout and alignment. Rows or columns that are
contiguous and start 16 bytes apart are read 16 bytes at a time, others by the element.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .epilogue import finished, store_tile
from .order import contiguous_on_chiplets, grouped


@triton.jit
def outer_offsets(left, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Offsets [BLOCK] of a tile's rows, or columns, of which `left` exist. What lies past the end
    repeats what exists, so that only the epilogue needs a mask. VECTOR of them are neighbours in
    memory, divide `left`, and are repeated together, so that they stay one access."""
    o = tl.arange(0, BLOCK)
    if VECTOR == 1:
        return tl.minimum(o, left - 1)
    return tl.max_contiguous(tl.multiple_of(tl.where(o < left, o, o % VECTOR), VECTOR), VECTOR)


@triton.jit(do_not_specialize=["inner", "batches", "len_m", "chunk"])
def tiled_product(
    p_a, p_b, p_bias, p_residual, p_out,
    stride_ao, stride_ai, stride_am, stride_ak,
    stride_bo, stride_bi, stride_bn, stride_bk,
    stride_rm,
    inner, batches, len_m, len_n, len_k, chunk,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr, CHIPLETS: tl.constexpr, VECTOR_M: tl.constexpr, VECTOR_N: tl.constexpr,
    WHOLE_K: tl.constexpr, WIDE: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A batch counts `batches` products, in two dimensions of which the inner counts `inner`; a
    program adds up `chunk` tiles of K, and outputs of one chunk of K follow those of the last."""
    blocks_m = tl.cdiv(len_m, BLOCK_M)
    blocks_n = tl.cdiv(len_n, BLOCK_N)
    pid = contiguous_on_chiplets(tl.program_id(0), tl.num_programs(0), CHIPLETS)
    i_m, i_n = grouped(pid % (blocks_m * blocks_n), blocks_m, blocks_n, GROUP_M)
    i_out = (pid // (blocks_m * blocks_n)).to(tl.int64)
    i_batch = i_out % batches
    first_m, first_n = i_m * BLOCK_M, i_n * BLOCK_N
    i_chunk = i_out // batches if WIDE else (i_out // batches).to(tl.int32)
    first_k = i_chunk * chunk * BLOCK_K
    end_k = tl.minimum(len_k, (i_chunk + 1) * chunk * BLOCK_K)

    p_a += i_batch // inner * stride_ao + i_batch % inner * stride_ai
    p_b += i_batch // inner * stride_bo + i_batch % inner * stride_bi
    p_a += first_m.to(tl.int64) * stride_am + first_k.to(tl.int64) * stride_ak
    p_b += first_n.to(tl.int64) * stride_bn + first_k.to(tl.int64) * stride_bk
    o_m = outer_offsets(len_m - first_m, BLOCK_M, VECTOR_M)  # [BLOCK_M]
    o_n = outer_offsets(len_n - first_n, BLOCK_N, VECTOR_N)  # [BLOCK_N]
    o_k = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    step = tl.full([], BLOCK_K, tl.int64) if WIDE else BLOCK_K
    if WIDE:
        o_m, o_n, o_k = o_m.to(tl.int64), o_n.to(tl.int64), o_k.to(tl.int64)
    p_a_tile = p_a + ((o_m * stride_am)[:, None] + (o_k * stride_ak)[None, :])  # [BLOCK_M, BLOCK_K]
    p_b_tile = p_b + ((o_k * stride_bk)[:, None] + (o_n * stride_bn)[None, :])  # [BLOCK_K, BLOCK_N]

    b_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in tl.range(first_k, end_k, BLOCK_K):
        if WHOLE_K:
            b_a = tl.load(p_a_tile)
            b_b = tl.load(p_b_tile)
        else:
            m_k = tl.arange(0, BLOCK_K) < len_k - k
            b_a = tl.load(p_a_tile, mask=m_k[None, :], other=0.0)
            b_b = tl.load(p_b_tile, mask=m_k[:, None], other=0.0)
        b_acc = tl.dot(b_a, b_b, b_acc, input_precision=PRECISION)
        p_a_tile += step * stride_ak
        p_b_tile += step * stride_bk

    b_out = finished(
        b_acc, p_bias, p_residual, stride_rm, first_m, first_n, len_m, len_n,
        BLOCK_M, BLOCK_N, WIDE, ACTIVATION,
    )  # fmt: skip
    p_out += i_out * len_m * len_n
    store_tile(p_out, b_out, first_m, first_n, len_m, len_n, BLOCK_M, BLOCK_N, WIDE)
