"""The last token of every sequence, by itself."""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

from torch import Tensor

import triton
import triton.language as tl

from .. import target
from .tiles import LAST


@triton.jit(do_not_specialize=["tokens"])
def last_tokens(
    p_x, p_starts, p_out, stride_t, stride_h, stride_start, tokens, width, BLOCK_N: tl.constexpr
):
    """out is contiguous [B, H, width]; a program copies BLOCK_N elements of one head. A sequence
    whose start and end are no part of the tokens gives NaN."""
    i_b, i_h = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    start = tl.load(p_starts + i_b * stride_start).to(tl.int64)
    end = tl.load(p_starts + (i_b + 1) * stride_start).to(tl.int64)
    end = tl.where((start >= 0) & (start < end) & (end <= tokens), end, 0)
    o_n = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    p_row = p_x + (end - 1) * stride_t + i_h * stride_h
    b_row = tl.load(p_row + o_n, mask=o_n < tl.where(end > 0, width, 0), other=float("nan"))
    p_out += (i_b * tl.num_programs(1) + i_h) * width
    tl.store(p_out + o_n, b_row, mask=o_n < width)


def last_of(x: Tensor, starts: Tensor) -> Tensor:
    """[B, H, D], contiguous, of x [T, H, D] with D adjacent elements, by starts [B + 1]."""
    tokens, heads, width = x.shape
    batch = starts.size(0) - 1
    out = x.new_empty(batch, heads, width)
    if out.numel() == 0:
        return out
    tile = LAST.choose(target.of(x.device), "any")
    target.launch(
        last_tokens,
        (batch, heads, target.divide_up(width, tile.n)),
        x,
        starts,
        out,
        x.stride(0),
        x.stride(1),
        starts.stride(0),
        tokens,
        width,
        BLOCK_N=tile.n,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out
