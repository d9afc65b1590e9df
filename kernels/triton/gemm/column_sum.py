"""The sum of a matrix's rows, as the gradient of a bias is: in two stages, in a fixed order."""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl

from .. import target
from .backward_tiles import COLUMN_SUM

# Sums of sums: one chain over a hundred thousand tokens would be off by a tenth of a percent.
CHUNK = 512


@triton.jit(do_not_specialize=["len_m"])
def column_sum(
    p_x, p_out, stride_xm, len_m, len_n,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr, WIDE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """A program adds up BLOCK_N columns of CHUNK rows; out is [chunks, N]."""
    blocks_n = tl.cdiv(len_n, BLOCK_N)
    i_n = tl.program_id(0) % blocks_n
    i_chunk = (tl.program_id(0) // blocks_n).to(tl.int64)
    first_n = i_n.to(tl.int64) * BLOCK_N
    left_n, left_m = len_n - first_n, tl.minimum(len_m - i_chunk * CHUNK, CHUNK).to(tl.int32)
    o_m, o_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    m_n = o_n < left_n
    p_x += i_chunk * CHUNK * stride_xm + first_n
    o_row = (o_m.to(tl.int64) if WIDE else o_m) * stride_xm
    p_x_tile = p_x + (o_row[:, None] + o_n[None, :])  # [BLOCK_M, BLOCK_N]
    step = tl.full([], BLOCK_M, tl.int64) if WIDE else BLOCK_M
    b_sum = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for m in tl.range(0, left_m, BLOCK_M, num_stages=STAGES):
        m_x = (o_m < left_m - m)[:, None] & m_n[None, :]
        b_sum += tl.load(p_x_tile, mask=m_x, other=0.0).to(tl.float32)
        p_x_tile += step * stride_xm
    p_out += i_chunk * len_n + first_n
    tl.store(p_out + o_n, tl.sum(b_sum, 0).to(p_out.dtype.element_ty), mask=m_n)


def sum_rows(x: Tensor, out: Tensor) -> None:
    """The sum over the rows of `x` [M, N], last stride 1, into `out` [N]; floats of any kind."""
    rows, columns = x.shape
    if columns == 0:
        return
    while rows > CHUNK:
        parts = out.new_empty(target.divide_up(rows, CHUNK), columns, dtype=torch.float32)
        _launch(x, parts)
        x, rows = parts, parts.size(0)
    _launch(x, out)


def _launch(x: Tensor, out: Tensor) -> None:
    rows, columns = x.shape
    tile = COLUMN_SUM.choose(target.of(x.device), "any")
    chunks = max(1, target.divide_up(rows, CHUNK))  # no rows: a sum of zero
    target.launch(
        column_sum,
        (target.divide_up(columns, tile.n) * chunks,),
        x,
        out,
        x.stride(0),
        rows,
        columns,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        CHUNK=CHUNK,
        WIDE=tile.m * x.stride(0) + tile.n >= 2**31,
        STAGES=tile.stages,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
