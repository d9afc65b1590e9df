"""Rotary position embedding: one kernel turns forward and, for the gradient, back.

A program owns some rows, counted batch by batch, position by position and head by head: the rows of
a program share most of their angles, whose loads then meet the cache.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl

from .. import check, target
from . import tiles


@triton.jit(do_not_specialize=["rows", "heads", "length"])
def rotate(
    p_x, p_cos, p_sin, p_out,
    stride_xb, stride_xh, stride_xs,
    stride_cb, stride_cs,
    stride_sb, stride_ss,
    rows, heads, length, pairs, dim,
    BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
    INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out is contiguous [B, H, S, D]; WIDE: its rows are counted in 64 bits."""
    i_row = tl.program_id(0)
    if WIDE:
        i_row = i_row.to(tl.int64)
    o_row = i_row * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    m_row = (o_row < rows)[:, None]
    o_h, o_position = o_row % heads, o_row // heads
    o_s, o_b = (o_position % length).to(tl.int64), (o_position // length).to(tl.int64)
    p_x_row = p_x + (o_b * stride_xb + o_h.to(tl.int64) * stride_xh + o_s * stride_xs)[:, None]
    p_cos_row = p_cos + (o_b * stride_cb + o_s * stride_cs)[:, None]
    p_sin_row = p_sin + (o_b * stride_sb + o_s * stride_ss)[:, None]
    o_out = (o_b * heads + o_h) * length + o_s  # out is contiguous
    p_out_row = p_out + (o_out * dim)[:, None]

    for first in tl.range(0, pairs, BLOCK_P):
        o_p = first + tl.arange(0, BLOCK_P)[None, :]
        m_p = m_row & (o_p < pairs)
        b_cos = tl.load(p_cos_row + o_p, mask=m_p, other=0.0)  # [BLOCK_R, BLOCK_P]
        b_sin = tl.load(p_sin_row + o_p, mask=m_p, other=0.0)
        if INVERSE:
            b_sin = -b_sin
        if INTERLEAVED:
            o_both = 2 * first + tl.arange(0, 2 * BLOCK_P)[None, :]
            m_both = m_row & (o_both < 2 * pairs)
            b_both = tl.load(p_x_row + o_both, mask=m_both, other=0.0).to(tl.float32)
            b_a, b_b = tl.split(b_both.reshape(BLOCK_R, BLOCK_P, 2))
            b_out = tl.interleave(b_a * b_cos - b_b * b_sin, b_b * b_cos + b_a * b_sin)
            tl.store(p_out_row + o_both, b_out.to(p_out.dtype.element_ty), mask=m_both)
        else:
            b_a = tl.load(p_x_row + o_p, mask=m_p, other=0.0).to(tl.float32)
            b_b = tl.load(p_x_row + pairs + o_p, mask=m_p, other=0.0).to(tl.float32)
            b_out_a = (b_a * b_cos - b_b * b_sin).to(p_out.dtype.element_ty)
            b_out_b = (b_b * b_cos + b_a * b_sin).to(p_out.dtype.element_ty)
            tl.store(p_out_row + o_p, b_out_a, mask=m_p)
            tl.store(p_out_row + pairs + o_p, b_out_b, mask=m_p)

    for first in tl.range(2 * pairs, dim, BLOCK_P):
        o_d = first + tl.arange(0, BLOCK_P)[None, :]
        m_d = m_row & (o_d < dim)
        tl.store(p_out_row + o_d, tl.load(p_x_row + o_d, mask=m_d), mask=m_d)


def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Turns pairs of elements of each head; see `lanewise.rope`.

    Args:
        x: [B, H, S, D], float32, bfloat16 or float16; any strides with the last 1.
        cos, sin: [S, R/2] or [B, S, R/2], float32, any strides with the last 1; R <= D.
        interleaved: the pairs are (2i, 2i + 1) instead of (i, i + R/2).

    Returns:
        [B, H, S, D] of x's dtype, contiguous.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, rank, shape or stride.
    """
    return _rotated("rope", "x", x, cos, sin, interleaved, False)


def rope_backward(grad: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The gradient of `rope`'s x: the same pairs turned the other way."""
    return _rotated("rope_backward", "grad", grad, cos, sin, interleaved, True)


def _check_angles(op: str, name: str, angles: Tensor, x: Tensor) -> None:
    check.require_device(op, name, angles, x.device)
    if angles.dtype != torch.float32:
        check.require_dtype(op, name, angles, torch.float32)
    check.require(
        angles.dim() in (2, 3),
        op,
        f"{name} must have shape [seq, pairs] or [batch, seq, pairs], got {list(angles.shape)}",
    )
    length, pairs = angles.shape[-2:]
    check.require(
        length == x.size(2), op, f"{name} has {length} positions, which is not x's {x.size(2)}"
    )
    check.require(
        angles.dim() == 2 or angles.size(0) == x.size(0),
        op,
        f"{name} has batch size {angles.size(0)}, which is not x's {x.size(0)}",
    )
    check.require(
        2 * pairs <= x.size(3),
        op,
        f"{name} rotates {2 * pairs} elements, more than x's {x.size(3)}",
    )
    check.require_unit_stride(op, name, angles)


def _rotated(
    op: str, name: str, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inverse: bool
) -> Tensor:
    check.require_floating(op, name, x)
    check.require_rank(op, name, x, 4)
    check.require_unit_stride(op, name, x)
    _check_angles(op, "cos", cos, x)
    _check_angles(op, "sin", sin, x)
    pairs = cos.size(-1)
    check.require(
        sin.size(-1) == pairs, op, f"sin has {sin.size(-1)} pairs, which is not cos's {pairs}"
    )
    batch, heads, length, dim = x.shape
    out = x.new_empty(x.shape)
    if out.numel() == 0:
        return out
    rows = batch * heads * length
    tile = tiles.choose(pairs, x.element_size(), target.of(x.device))
    target.launch(
        rotate,
        (target.divide_up(rows, tile.rows),),
        x,
        cos,
        sin,
        out,
        *x.stride()[:3],
        cos.stride(0) if cos.dim() == 3 else 0,
        cos.stride(-2),
        sin.stride(0) if sin.dim() == 3 else 0,
        sin.stride(-2),
        rows,
        heads,
        length,
        pairs,
        dim,
        BLOCK_R=tile.rows,
        BLOCK_P=tile.pairs,
        INTERLEAVED=interleaved,
        INVERSE=inverse,
        WIDE=rows + tile.rows > 2**31,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out
