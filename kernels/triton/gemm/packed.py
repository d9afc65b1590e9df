"""Packed weights on GPUs: a header, then the rows as they are; and the ops over them."""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl

from .. import check, target
from .arguments import require_activation, require_bias, require_same_width, require_x
from .gated import checked_gated
from .linear import checked_linear
from .packed_header import (
    MOST_BYTES,
    WORDS,
    header,
    kind,
    require_packed,
    row_bytes,
    rows_of,
    words_of,
)
from .packed_tiles import GUARD, PACK


@triton.jit(do_not_specialize=["kind"])
def pack_rows(
    p_weight, p_rows, p_header, stride_n, stride_k, stride_row, kind, len_n, len_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Copies BLOCK_M rows by BLOCK_N columns of a weight of any strides; the first program writes
    the header too."""
    if tl.program_id(0) == 0:
        tl.store(p_header + tl.arange(0, WORDS), header(kind, len_n, len_k))
    blocks_k = tl.maximum(tl.cdiv(len_k, BLOCK_N), 1)
    first_n = (tl.program_id(0) // blocks_k).to(tl.int64) * BLOCK_M
    first_k = (tl.program_id(0) % blocks_k).to(tl.int64) * BLOCK_N
    o_n, o_k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    m_tile = (o_n < len_n - first_n)[:, None] & (o_k < len_k - first_k)[None, :]
    if WIDE:
        o_n, o_k = o_n.to(tl.int64), o_k.to(tl.int64)
    p_weight += first_n * stride_n + first_k * stride_k
    p_rows += first_n * stride_row + first_k
    o_weight = (o_n * stride_n)[:, None] + (o_k * stride_k)[None, :]  # [BLOCK_M, BLOCK_N]
    o_row = (o_n * stride_row)[:, None] + o_k[None, :]  # [BLOCK_M, BLOCK_N]
    tl.store(p_rows + o_row, tl.load(p_weight + o_weight, mask=m_tile), mask=m_tile)


@triton.jit(do_not_specialize=["kind"])
def guarded_bias(
    p_header, p_other_header, p_bias, p_out, kind, len_n, len_k, BLOCK_N: tl.constexpr
):
    """The bias in float32, or zeros without one; NaN where a header is not that of a weight
    [len_n, len_k] of its kind."""
    o = tl.arange(0, WORDS)
    b_due = header(kind, len_n, len_k)
    differ = tl.sum((tl.load(p_header + o) != b_due).to(tl.int32))
    if p_other_header is not None:
        differ += tl.sum((tl.load(p_other_header + o) != b_due).to(tl.int32))
    first_n = tl.program_id(0).to(tl.int64) * BLOCK_N
    o_n = tl.arange(0, BLOCK_N)
    m_n = o_n < len_n - first_n
    b_bias = tl.zeros([BLOCK_N], tl.float32)
    if p_bias is not None:
        b_bias = tl.load(p_bias + first_n + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_bias = tl.where(differ == 0, b_bias, float("nan"))
    tl.store(p_out + first_n + o_n, b_bias, mask=m_n)


def pack_weight(weight: Tensor) -> Tensor:
    """A header and the rows of a weight, 16 bytes apart, for `linear_packed` on a GPU.

    Args:
        weight: [N, K], float32, bfloat16 or float16, any strides.

    Returns:
        uint8 [N, bytes], what is left over zero.

    Raises:
        RuntimeError: the weight has the wrong dtype or rank, or too many bytes.
    """
    op = "pack_weight"
    check.require_floating(op, "weight", weight)
    check.require_rank(op, "weight", weight, 2)
    columns, depth = weight.shape
    row = row_bytes(columns, depth, weight.element_size())
    check.require(
        columns * row <= MOST_BYTES,
        op,
        f"weight is too large to pack, got shape {list(weight.shape)}",
    )
    packed = weight.new_zeros(columns, row, dtype=torch.uint8)
    if columns == 0:
        return packed
    tile = PACK.choose(target.of(weight.device), "any")
    rows = rows_of(packed, depth, weight.dtype)
    blocks_k = max(1, target.divide_up(depth, tile.n))
    furthest = max(weight.stride(0), rows.stride(0)) * tile.m + weight.stride(1) * tile.n
    target.launch(
        pack_rows,
        (target.divide_up(columns, tile.m) * blocks_k,),
        weight,
        rows,
        words_of(packed),
        *weight.stride(),
        rows.stride(0),
        kind(weight.dtype),
        columns,
        depth,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        WIDE=furthest >= 2**31,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return packed


def linear_packed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """`linear` over a weight from `pack_weight`; NaN where its header is not that of such a weight.

    Raises:
        RuntimeError: as `linear`; the buffer has a wrong size, or, where indexes are checked, a
            wrong header.
    """
    op = "linear_packed"
    require_x(op, x)
    require_packed(op, "weight", weight, x)
    require_activation(op, activation)
    require_bias(op, "bias", bias, x, weight.size(0))
    if weight.size(0):
        bias = _guarded(x, bias, weight)
    return checked_linear(op, x, _rows(weight, x), bias, residual, activation)


def gated_linear_packed(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    """`gated_linear` over weights from `pack_weight`, as `linear_packed` is `linear`."""
    op = "gated_linear_packed"
    require_x(op, x)
    require_packed(op, "gate", gate, x)
    require_packed(op, "up", up, x)
    require_same_width(op, gate, up)
    require_activation(op, activation)
    require_bias(op, "up_bias", up_bias, x, up.size(0))
    if up.size(0):
        up_bias = _guarded(x, up_bias, gate, up)  # a factor of NaN is enough
    return checked_gated(op, x, _rows(gate, x), _rows(up, x), gate_bias, up_bias, activation)


def _rows(packed: Tensor, x: Tensor) -> Tensor:
    return rows_of(packed, x.size(-1), x.dtype)


def _guarded(x: Tensor, bias: Tensor | None, packed: Tensor, other: Tensor | None = None) -> Tensor:
    columns = packed.size(0)
    tile = GUARD.choose(target.of(x.device), "any")
    out = x.new_empty(columns, dtype=torch.float32)
    target.launch(
        guarded_bias,
        (target.divide_up(columns, tile.n),),
        words_of(packed),
        None if other is None else words_of(other),
        bias,
        out,
        kind(x.dtype),
        columns,
        x.size(-1),
        BLOCK_N=tile.n,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out
