"""The gated linear layer: two products with one x, and their epilogue, in one kernel.

A tile of x is read once for both weights and multiplied into two accumulators.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl

from .. import target
from ..activation import activate
from . import gated_tiles
from .arguments import (
    require_activation,
    require_bias,
    require_same_width,
    require_weight,
    require_x,
)
from .epilogue import finished, store_tile
from .order import contiguous_on_chiplets, grouped
from .tiled import outer_offsets
from .tiles import GROUP_M, TILE_K_BYTES


@triton.jit(do_not_specialize=["len_m"])
def gated_product(
    p_x, p_gate, p_up, p_gate_bias, p_up_bias, p_out, p_gate_sums, p_up_sums,
    stride_xm, stride_xk, stride_gn, stride_gk, stride_un, stride_uk,
    len_m, len_n, len_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr, CHIPLETS: tl.constexpr, VECTOR_N: tl.constexpr,
    WHOLE_K: tl.constexpr, WIDE: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Both sums, biases added, are stored too where `p_gate_sums` and `p_up_sums` are given."""
    blocks_m = tl.cdiv(len_m, BLOCK_M)
    blocks_n = tl.cdiv(len_n, BLOCK_N)
    pid = contiguous_on_chiplets(tl.program_id(0), tl.num_programs(0), CHIPLETS)
    i_m, i_n = grouped(pid, blocks_m, blocks_n, GROUP_M)
    first_m, first_n = i_m * BLOCK_M, i_n * BLOCK_N

    p_x += first_m.to(tl.int64) * stride_xm
    p_gate += first_n.to(tl.int64) * stride_gn
    p_up += first_n.to(tl.int64) * stride_un
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
    for k in tl.range(0, len_k, BLOCK_K):
        if WHOLE_K:
            b_x = tl.load(p_x_tile)  # [BLOCK_M, BLOCK_K]
            b_gate = tl.load(p_gate_tile)  # [BLOCK_K, BLOCK_N]
            b_up = tl.load(p_up_tile)  # [BLOCK_K, BLOCK_N]
        else:
            m_k = tl.arange(0, BLOCK_K) < len_k - k
            b_x = tl.load(p_x_tile, mask=m_k[None, :], other=0.0)
            b_gate = tl.load(p_gate_tile, mask=m_k[:, None], other=0.0)
            b_up = tl.load(p_up_tile, mask=m_k[:, None], other=0.0)
        b_gate_acc = tl.dot(b_x, b_gate, b_gate_acc, input_precision=PRECISION)
        b_up_acc = tl.dot(b_x, b_up, b_up_acc, input_precision=PRECISION)
        p_x_tile += step * stride_xk
        p_gate_tile += step * stride_gk
        p_up_tile += step * stride_uk

    # Each sum is stored before the next is finished: what both need would not fit the registers.
    b_gate_acc = finished(
        b_gate_acc, p_gate_bias, None, 0, first_m, first_n, len_m, len_n,
        BLOCK_M, BLOCK_N, WIDE, "none",
    )  # fmt: skip
    if p_gate_sums is not None:
        store_tile(p_gate_sums, b_gate_acc, first_m, first_n, len_m, len_n, BLOCK_M, BLOCK_N, WIDE)
    b_up_acc = finished(
        b_up_acc, p_up_bias, None, 0, first_m, first_n, len_m, len_n,
        BLOCK_M, BLOCK_N, WIDE, "none",
    )  # fmt: skip
    if p_up_sums is not None:
        store_tile(p_up_sums, b_up_acc, first_m, first_n, len_m, len_n, BLOCK_M, BLOCK_N, WIDE)
    b_out = activate(b_gate_acc, ACTIVATION) * b_up_acc
    store_tile(p_out, b_out, first_m, first_n, len_m, len_n, BLOCK_M, BLOCK_N, WIDE)


def gated_linear(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    """activation(x @ gate.T + gate_bias) * (x @ up.T + up_bias), accumulated in float32.

    Args:
        x: [..., K], float32, bfloat16 or float16; copied if its leading dimensions do not merge.
        gate, up: [N, K], x's dtype, any strides; contiguous rows are read 16 bytes at a time.
        gate_bias, up_bias: [N], x's dtype or float32.
        activation: none, relu, gelu, gelu_tanh, silu or tanh.

    Returns:
        [..., N] in x's dtype; contiguous.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, rank, shape or stride.
    """
    op = "gated_linear"
    require_gated(op, x, gate, up)
    return checked_gated(op, x, gate, up, gate_bias, up_bias, activation)


def gated_linear_for_backward(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    activation: str = "silu",
) -> tuple[Tensor, Tensor, Tensor]:
    """`gated_linear`, and both sums with their biases, [..., N] in float32: gate's and up's."""
    op = "gated_linear"  # which it is to whoever made the mistake
    require_gated(op, x, gate, up)
    shape = (*x.shape[:-1], gate.size(0))
    sums = x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)
    out = checked_gated(op, x, gate, up, gate_bias, up_bias, activation, *sums)
    return out, *sums


def require_gated(op: str, x: Tensor, gate: Tensor, up: Tensor) -> None:
    require_x(op, x)
    require_weight(op, "gate", gate, x)
    require_weight(op, "up", up, x)
    require_same_width(op, gate, up)


def checked_gated(
    op: str,
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    gate_sums: Tensor | None = None,
    up_sums: Tensor | None = None,
) -> Tensor:
    """`gated_linear` in the name of `op`, which has checked x, gate and up; keeps both sums where
    it is given where to."""
    columns, depth = gate.shape
    require_activation(op, activation)
    require_bias(op, "gate_bias", gate_bias, x, columns)
    require_bias(op, "up_bias", up_bias, x, columns)
    out = x.new_empty(*x.shape[:-1], columns)
    if out.numel() == 0:
        return out
    rows = out.numel() // columns
    x = x.reshape(rows, depth)

    architecture = target.of(x.device)
    tile = gated_tiles.choose(rows, columns, x.element_size(), architecture)
    block_m = min(tile.m, target.block(rows))
    block_k = TILE_K_BYTES // x.element_size()
    vector = 16 // x.element_size()
    transposed = all(w.stride(0) == 1 != w.stride(1) for w in (gate, up))
    widest = max(
        block_m * x.stride(0) + block_k * x.stride(1),
        *(tile.n * w.stride(0) + block_k * w.stride(1) for w in (gate, up)),
        block_m * columns + tile.n,
    )
    target.launch(
        gated_product,
        (target.divide_up(rows, block_m) * target.divide_up(columns, tile.n),),
        x,
        gate,
        up,
        gate_bias,
        up_bias,
        out,
        gate_sums,
        up_sums,
        *x.stride(),
        *gate.stride(),
        *up.stride(),
        rows,
        columns,
        depth,
        BLOCK_M=block_m,
        BLOCK_N=tile.n,
        BLOCK_K=block_k,
        GROUP_M=GROUP_M,
        CHIPLETS=architecture.chiplets,
        VECTOR_N=vector if transposed and columns % vector == 0 else 1,
        WHOLE_K=depth % block_k == 0,
        WIDE=widest >= 2**31,
        ACTIVATION=activation,
        PRECISION=architecture.float32_dots if x.dtype == torch.float32 else "ieee",
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out
