"""Where the rows of a norm's tensors lie, on the host and in a kernel."""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import triton
import triton.language as tl

LEVELS = 3  # of rows that a kernel walks


@dataclass(frozen=True)
class Rows:
    """Row ((o * middle) + m) * inner + i of a tensor begins at o, m and i times its three strides.

    `strides` are the three of each tensor in turn, zeros where there is none; `nested` says that
    not all rows of each tensor lie one stride apart.
    """

    tensors: list[Tensor | None]
    middle: int
    inner: int
    strides: list[int]
    nested: bool


def rows_of(*tensors: Tensor | None) -> Rows:
    """The rows of tensors of one shape, with neighbouring dimensions merged where all allow it; if
    they lie in no simpler order the tensors are dense copies."""
    levels = _levels([t for t in tensors if t is not None])
    if len(levels) > LEVELS:
        return rows_of(*(t if t is None else t.contiguous() for t in tensors))
    nested = len(levels) > 1
    levels = [(1, ())] * (LEVELS - len(levels)) + levels
    strides: list[int] = []
    i = 0
    for t in tensors:
        strides += [0 if t is None or not level[1] else level[1][i] for level in levels]
        i += t is not None
    return Rows(list(tensors), levels[1][0], levels[2][0], strides, nested)


def _levels(tensors: list[Tensor]) -> list[tuple[int, tuple[int, ...]]]:
    """Extent and the stride of each tensor, outermost first."""
    levels: list[tuple[int, tuple[int, ...]]] = []
    for d, size in enumerate(tensors[0].shape[:-1]):
        if size == 1:
            continue
        strides = tuple(t.stride(d) for t in tensors)
        if levels and levels[-1][1] == tuple(size * stride for stride in strides):
            levels[-1] = (levels[-1][0] * size, strides)
        else:
            levels.append((size, strides))
    return levels


@triton.jit
def row_offsets(o_row, middle, inner, stride_o, stride_m, stride_i, NESTED: tl.constexpr):
    """Where rows [BLOCK_R], counted in 64 bits, begin."""
    if NESTED:
        o_outer = o_row // inner
        return o_outer // middle * stride_o + o_outer % middle * stride_m + o_row % inner * stride_i
    return o_row * stride_i


@triton.jit
def load_rows(p_x, p_residual, o_x, o_residual, o_n, mask):
    """x, or x + residual unrounded, in float32; zero outside the mask."""
    b_v = tl.load(p_x + o_x[:, None] + o_n[None, :], mask=mask, other=0.0).to(tl.float32)
    if p_residual is not None:
        p_residual_tile = p_residual + o_residual[:, None] + o_n[None, :]
        b_v += tl.load(p_residual_tile, mask=mask, other=0.0).to(tl.float32)
    return b_v


@triton.jit
def load_weight(p_weight, o_n, len_n, weight_offset):
    """weight + offset [BLOCK_N] in float32."""
    return tl.load(p_weight + o_n, mask=o_n < len_n, other=0.0).to(tl.float32) + weight_offset
