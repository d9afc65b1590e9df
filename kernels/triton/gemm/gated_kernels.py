"""The kernels of gated products: two products with one x, and their common epilogue.

A tile of x is read once for both weights and multiplied into two accumulators. Otherwise they are
the three kernels of plain products: tiled.py, persistent.py and split.py say what those are for.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from ..activation import activate
from .epilogue import biased, store_tile, tile_of
from .order import contiguous_on_chiplets, grouped
from .persistent import load_matrix, part, store_matrix
from .tiled import outer_offsets


@triton.jit
def store_gated(
    b_gate, b_up, p_gate_bias, p_up_bias, p_out, p_gate_sums, p_up_sums,
    first_m, first_n, len_m, len_n,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Of two tiles of sums [BLOCK_M, BLOCK_N]: activation(gate's) · up's, biases added, and those
    sums themselves; each where a matrix to store it in is given."""
    # Each sum is stored before the next is finished: what both need would not fit the registers.
    b_gate = biased(b_gate, p_gate_bias, first_n, len_n, BLOCK_N)
    if p_gate_sums is not None:
        store_tile(p_gate_sums, b_gate, first_m, first_n, len_m, len_n, BLOCK_M, BLOCK_N, WIDE)
    b_up = biased(b_up, p_up_bias, first_n, len_n, BLOCK_N)
    if p_up_sums is not None:
        store_tile(p_up_sums, b_up, first_m, first_n, len_m, len_n, BLOCK_M, BLOCK_N, WIDE)
    if p_out is not None:
        b_out = activate(b_gate, ACTIVATION) * b_up
        store_tile(p_out, b_out, first_m, first_n, len_m, len_n, BLOCK_M, BLOCK_N, WIDE)


@triton.jit(do_not_specialize=["len_m", "chunk"])
def tiled_gated_product(
    p_x, p_gate, p_up, p_gate_bias, p_up_bias, p_out, p_gate_sums, p_up_sums,
    stride_xm, stride_xk, stride_gn, stride_gk, stride_un, stride_uk,
    len_m, len_n, len_k, chunk,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr, CHIPLETS: tl.constexpr, VECTOR_N: tl.constexpr,
    WHOLE_K: tl.constexpr, WIDE: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program adds up `chunk` tiles of K; sums of one chunk of K follow those of the last."""
    blocks_m = tl.cdiv(len_m, BLOCK_M)
    blocks_n = tl.cdiv(len_n, BLOCK_N)
    pid = contiguous_on_chiplets(tl.program_id(0), tl.num_programs(0), CHIPLETS)
    i_m, i_n = grouped(pid % (blocks_m * blocks_n), blocks_m, blocks_n, GROUP_M)
    i_chunk = pid // (blocks_m * blocks_n)
    if WIDE:
        i_chunk, chunk = i_chunk.to(tl.int64), chunk.to(tl.int64)
    first_m, first_n = i_m * BLOCK_M, i_n * BLOCK_N
    first_k = i_chunk * chunk * BLOCK_K
    left_k = tl.minimum(len_k - first_k, chunk * BLOCK_K)

    p_x += first_m.to(tl.int64) * stride_xm + first_k.to(tl.int64) * stride_xk
    p_gate += first_n.to(tl.int64) * stride_gn + first_k.to(tl.int64) * stride_gk
    p_up += first_n.to(tl.int64) * stride_un + first_k.to(tl.int64) * stride_uk
    o_m = outer_offsets(len_m - first_m, BLOCK_M, 1)  # [BLOCK_M]
    o_n = outer_offsets(len_n - first_n, BLOCK_N, VECTOR_N)  # [BLOCK_N]
    o_k = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    step = tl.full([], BLOCK_K, tl.int64) if WIDE else BLOCK_K
    if WIDE:
        o_m, o_n, o_k = o_m.to(tl.int64), o_n.to(tl.int64), o_k.to(tl.int64)
    p_x_tile = p_x + ((o_m * stride_xm)[:, None] + (o_k * stride_xk)[None, :])
    p_gate_tile = p_gate + ((o_k * stride_gk)[:, None] + (o_n * stride_gn)[None, :])
    p_up_tile = p_up + ((o_k * stride_uk)[:, None] + (o_n * stride_un)[None, :])

    b_gate_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_up_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in tl.range(0, left_k, BLOCK_K):
        if WHOLE_K:
            b_x = tl.load(p_x_tile)  # [BLOCK_M, BLOCK_K]
            b_gate = tl.load(p_gate_tile)  # [BLOCK_K, BLOCK_N]
            b_up = tl.load(p_up_tile)  # [BLOCK_K, BLOCK_N]
        else:
            m_k = tl.arange(0, BLOCK_K) < left_k - k
            b_x = tl.load(p_x_tile, mask=m_k[None, :], other=0.0)
            b_gate = tl.load(p_gate_tile, mask=m_k[:, None], other=0.0)
            b_up = tl.load(p_up_tile, mask=m_k[:, None], other=0.0)
        b_gate_acc = tl.dot(b_x, b_gate, b_gate_acc, input_precision=PRECISION)
        b_up_acc = tl.dot(b_x, b_up, b_up_acc, input_precision=PRECISION)
        p_x_tile += step * stride_xk
        p_gate_tile += step * stride_gk
        p_up_tile += step * stride_uk

    if p_gate_sums is not None:
        p_gate_sums += i_chunk.to(tl.int64) * len_m * len_n
        p_up_sums += i_chunk.to(tl.int64) * len_m * len_n
    store_gated(
        b_gate_acc, b_up_acc, p_gate_bias, p_up_bias, p_out, p_gate_sums, p_up_sums,
        first_m, first_n, len_m, len_n, BLOCK_M, BLOCK_N, WIDE, ACTIVATION,
    )  # fmt: skip


@triton.jit(do_not_specialize=["len_m", "chunks", "chunk"])
def persistent_gated_product(
    d_x, d_gate, d_up, d_out, d_gate_sums, d_up_sums, p_gate_bias, p_up_bias,
    len_m, len_n, chunks, chunk,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PART_N: tl.constexpr,
    GROUP_M: tl.constexpr, X_TRANSPOSED: tl.constexpr, GATE_TRANSPOSED: tl.constexpr,
    UP_TRANSPOSED: tl.constexpr, SPECIALIZED: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """All matrices are of a batch of one, but for the sums, of which there are those of `chunks`
    chunks of K, of `chunk` tiles. Past the end of K operands read as zero."""
    blocks_m = tl.cdiv(len_m, BLOCK_M)
    blocks_n = tl.cdiv(len_n, BLOCK_N)
    tiles = blocks_m * blocks_n
    PARTS: tl.constexpr = BLOCK_N // PART_N
    # Specialized warps overlap tiles by themselves, and the compiler does not specialize for two
    # accumulators what it has made one loop.
    for i in tl.range(
        tl.program_id(0), tiles * chunks, tl.num_programs(0),
        flatten=not SPECIALIZED, warp_specialize=SPECIALIZED,
    ):  # fmt: skip
        i_m, i_n = grouped(i % tiles, blocks_m, blocks_n, GROUP_M)
        i_chunk = i // tiles
        first_m, first_n = i_m * BLOCK_M, i_n * BLOCK_N
        first_k = i_chunk * chunk * BLOCK_K
        b_gate_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        b_up_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in tl.range(chunk):  # as many turns for every tile, or the loops do not become one
            o_k = first_k + k * BLOCK_K
            b_x = load_matrix(d_x, 0, first_m, o_k, X_TRANSPOSED)  # [BLOCK_M, BLOCK_K]
            b_gate = load_matrix(d_gate, 0, o_k, first_n, GATE_TRANSPOSED)  # [BLOCK_K, BLOCK_N]
            b_up = load_matrix(d_up, 0, o_k, first_n, UP_TRANSPOSED)  # [BLOCK_K, BLOCK_N]
            b_gate_acc = tl.dot(b_x, b_gate, b_gate_acc)
            b_up_acc = tl.dot(b_x, b_up, b_up_acc)
        for PART in tl.static_range(PARTS):
            part_n = first_n + PART * PART_N
            b_gate_sum = biased(part(b_gate_acc, PART, PARTS), p_gate_bias, part_n, len_n, PART_N)
            b_up_sum = biased(part(b_up_acc, PART, PARTS), p_up_bias, part_n, len_n, PART_N)
            if d_gate_sums is not None:
                store_matrix(d_gate_sums, b_gate_sum, i_chunk, first_m, part_n)
                store_matrix(d_up_sums, b_up_sum, i_chunk, first_m, part_n)
            if d_out is not None:
                b_out = activate(b_gate_sum, ACTIVATION) * b_up_sum
                store_matrix(d_out, b_out, 0, first_m, part_n)


@triton.jit(do_not_specialize=["len_m", "chunks"])
def sum_of_gated_chunks(
    p_gate_chunks, p_up_chunks, p_gate_bias, p_up_bias, p_out, p_gate_sums, p_up_sums,
    len_m, len_n, chunks,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Chunks [chunks, len_m, len_n] of both sums are added in their order."""
    blocks_n = tl.cdiv(len_n, BLOCK_N)
    first_m = tl.program_id(0) // blocks_n * BLOCK_M
    first_n = tl.program_id(0) % blocks_n * BLOCK_N
    p_gate_tile, m_tile = tile_of(
        p_gate_chunks, len_n, first_m, first_n, len_m, len_n, BLOCK_M, BLOCK_N, WIDE
    )
    p_up_tile, _ = tile_of(
        p_up_chunks, len_n, first_m, first_n, len_m, len_n, BLOCK_M, BLOCK_N, WIDE
    )
    step = tl.full([], 1, tl.int64) * len_m * len_n

    b_gate_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_up_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for _ in tl.range(chunks, num_stages=STAGES):
        b_gate_acc += tl.load(p_gate_tile, mask=m_tile, other=0.0)
        b_up_acc += tl.load(p_up_tile, mask=m_tile, other=0.0)
        p_gate_tile += step
        p_up_tile += step
    store_gated(
        b_gate_acc, b_up_acc, p_gate_bias, p_up_bias, p_out, p_gate_sums, p_up_sums,
        first_m, first_n, len_m, len_n, BLOCK_M, BLOCK_N, WIDE, ACTIVATION,
    )  # fmt: skip
