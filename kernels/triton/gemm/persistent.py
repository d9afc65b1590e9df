"""The matrix product of aligned operands, for GPUs that copy whole tiles in hardware (TMA).

As many programs as the GPU has units share the tiles of the output. The loop over tiles and the
one over K are one to the compiler, so that the next tile's operands arrive behind the epilogue of
the last. On Blackwell warps specialize: some copy, one multiplies, the others finish.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .epilogue import finished
from .order import grouped


@triton.jit
def load_matrix(d_x, i_batch, first_row, first_col, TRANSPOSED: tl.constexpr):
    """A tile of a matrix of d_x, [batch, rows, columns], or [batch, columns, rows] TRANSPOSED."""
    if TRANSPOSED:
        b_x = d_x.load([i_batch, first_col, first_row])
        return tl.trans(b_x.reshape(b_x.shape[1], b_x.shape[2]))
    else:
        b_x = d_x.load([i_batch, first_row, first_col])
        return b_x.reshape(b_x.shape[1], b_x.shape[2])


@triton.jit
def store_matrix(d_x, b_x, i_batch, first_row, first_col):
    """Stores `b_x` [rows, columns] in a matrix of d_x, [batch, rows, columns]."""
    b_x = b_x.to(d_x.dtype)
    d_x.store([i_batch, first_row, first_col], b_x.reshape(1, b_x.shape[0], b_x.shape[1]))


@triton.jit
def part(b_x, PART: tl.constexpr, PARTS: tl.constexpr):
    """Part PART of the columns of b_x, which are PARTS times as many."""
    if PARTS == 1:
        return b_x
    else:
        ROWS: tl.constexpr = b_x.shape[0]
        HALF: tl.constexpr = b_x.shape[1] // 2
        b_halves = tl.permute(tl.reshape(b_x, [ROWS, 2, HALF]), [0, 2, 1])
        b_left, b_right = tl.split(b_halves)
        if PART < PARTS // 2:
            return part(b_left, PART, PARTS // 2)
        else:
            return part(b_right, PART - PARTS // 2, PARTS // 2)


@triton.jit(do_not_specialize=["batches", "batches_a", "batches_b", "len_m", "chunks", "chunk"])
def persistent_product(
    d_a, d_b, d_out, p_bias, p_residual, stride_rm,
    batches, batches_a, batches_b, len_m, len_n, chunks, chunk,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PART_N: tl.constexpr,
    GROUP_M: tl.constexpr, A_TRANSPOSED: tl.constexpr, B_TRANSPOSED: tl.constexpr,
    SPECIALIZED: tl.constexpr, WIDE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Operands are [batch or 1, ...]. Outputs of `batches` products follow each other, once for
    each of `chunks` chunks of K, of `chunk` tiles. Past the end of K both operands read as zero."""
    blocks_m = tl.cdiv(len_m, BLOCK_M)
    blocks_n = tl.cdiv(len_n, BLOCK_N)
    tiles = blocks_m * blocks_n
    for i in tl.range(
        tl.program_id(0), tiles * batches * chunks, tl.num_programs(0),
        flatten=True, warp_specialize=SPECIALIZED,
    ):  # fmt: skip
        i_m, i_n = grouped(i % tiles, blocks_m, blocks_n, GROUP_M)
        i_out = i // tiles
        i_a = tl.minimum(i_out % batches, batches_a - 1)
        i_b = tl.minimum(i_out % batches, batches_b - 1)
        first_m, first_n = i_m * BLOCK_M, i_n * BLOCK_N
        first_k = i_out // batches * chunk * BLOCK_K
        b_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in tl.range(chunk):  # as many turns for every tile, or the loops do not become one
            o_k = first_k + k * BLOCK_K
            b_a = load_matrix(d_a, i_a, first_m, o_k, A_TRANSPOSED)  # [BLOCK_M, BLOCK_K]
            b_b = load_matrix(d_b, i_b, o_k, first_n, B_TRANSPOSED)  # [BLOCK_K, BLOCK_N]
            b_acc = tl.dot(b_a, b_b, b_acc)
        # A part at a time, so that the output on its way to memory takes little of the shared one.
        for PART in tl.static_range(BLOCK_N // PART_N):
            part_n = first_n + PART * PART_N
            b_out = finished(
                part(b_acc, PART, BLOCK_N // PART_N), p_bias, p_residual, stride_rm,
                first_m, part_n, len_m, len_n, BLOCK_M, PART_N, WIDE, ACTIVATION,
            )  # fmt: skip
            store_matrix(d_out, b_out, i_out, first_m, part_n)
