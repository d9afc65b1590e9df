"""Sums of the chunks of K that programs of their own multiplied, in the order of the chunks.

Where a product has fewer tiles than the GPU has units, as in decoding or in the gradient of a small
weight, each tile is given to several programs, a chunk of K each. Their float32 results lie behind
each other, and are added here in one order: the same bits every time.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .epilogue import finished, store_tile, tile_of


@triton.jit(do_not_specialize=["len_m", "chunks"])
def sum_of_chunks(
    p_chunks, p_bias, p_residual, p_out,
    stride_rm, len_m, len_n, chunks,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    blocks_n = tl.cdiv(len_n, BLOCK_N)
    first_m = tl.program_id(0) // blocks_n * BLOCK_M
    first_n = tl.program_id(0) % blocks_n * BLOCK_N
    p_tile, m_tile = tile_of(
        p_chunks, len_n, first_m, first_n, len_m, len_n, BLOCK_M, BLOCK_N, WIDE
    )
    step = tl.full([], 1, tl.int64) * len_m * len_n

    b_acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for _ in tl.range(chunks, num_stages=STAGES):
        b_acc += tl.load(p_tile, mask=m_tile, other=0.0)
        p_tile += step
    b_out = finished(
        b_acc, p_bias, p_residual, stride_rm, first_m, first_n, len_m, len_n,
        BLOCK_M, BLOCK_N, WIDE, ACTIVATION,
    )  # fmt: skip
    store_tile(p_out, b_out, first_m, first_n, len_m, len_n, BLOCK_M, BLOCK_N, WIDE)
