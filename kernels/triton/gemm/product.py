"""activation(a @ b + bias) + residual into a given tensor: chooses the kernel and launches it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import target
from ..activation import DERIVATIVES
from ..target import Architecture, divide_up, power_of_2
from . import boxes
from .operand import MOST_32_BITS, Operand
from .persistent import persistent_product
from .split import sum_of_chunks
from .tiled import tiled_product
from .tiles import FEW_ROWS, GROUP_M, PART_N_BYTES, SUM, Choice, PersistentTile, Problem

Batch = list[tuple[int, int, int]]  # extent, stride of a, stride of b; outermost first


class Epilogue(NamedTuple):
    """activation(sums + bias) + residual, into `out`."""

    out: Tensor
    bias: Tensor | None = None
    residual: Tensor | None = None
    activation: str = "none"

    @property
    def stride(self) -> int:
        return 0 if self.residual is None else self.residual.stride(0)


def product(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> None:
    """activation(a @ b + bias) + residual into `out`, accumulated in float32; checks nothing.

    Args:
        a: [..., M, K], float32, bfloat16 or float16, any strides.
        b: [..., K, N], a's dtype, any strides; leading dimensions broadcast to out's.
        out: [..., M, N], any floating dtype, contiguous.
        bias: [N], any floating dtype, stride 1.
        residual: [M, N], any floating dtype, last stride 1; with operands of two dimensions.
        activation: one of `lanewise.kernels.activation.ACTIVATIONS`, or of its DERIVATIVES, by
            which the residual is multiplied instead of added.
    """
    if out.numel() == 0:
        return
    batch = _batch(a, b, out)
    if len(batch) > 2:  # more dimensions than the kernel takes
        for i in range(out.size(0)):
            part_a, part_b = (t if t.dim() < out.dim() else t[i % t.size(0)] for t in (a, b))
            product(part_a, part_b, out[i], bias, residual, activation)
        return

    rows, columns, depth = a.size(-2), b.size(-1), a.size(-1)
    across_a = a.stride(-2)
    if len(batch) == 1 and batch[0][2] == 0 and (rows == 1 or batch[0][1] == rows * across_a):
        # One b for all: the matrices of a are rows of one.
        count, stride, _ = batch.pop()
        rows, across_a = rows * count, stride if rows == 1 else across_a
    batches = math.prod(size for size, _, _ in batch)
    (_, outer_a, outer_b), (inner, inner_a, inner_b) = [(1, 0, 0), (1, 0, 0), *batch][-2:]
    left = Operand(a, outer_a, inner_a, across_a, a.stride(-1))
    right = Operand(b, outer_b, inner_b, b.stride(-1), b.stride(-2))

    architecture = target.of(a.device)
    in_boxes = (
        rows > FEW_ROWS
        and inner == batches
        and boxes.describable((left, right), out, rows, columns, depth, batches)
    )
    problem = Problem(
        rows,
        columns,
        depth,
        batches,
        a.element_size(),
        in_boxes,
        derivative=activation in DERIVATIVES,
        aligned=left.aligned(rows, depth) and right.aligned(columns, depth),
    )
    choice = problem.choose(architecture)
    whole = Epilogue(out, bias, residual, activation)
    launch = _persistent if isinstance(choice.tile, PersistentTile) else _tiled
    if choice.chunks == 1:
        launch(problem, choice, architecture, left, right, inner, whole)
        return
    chunks = out.new_empty(choice.chunks, *out.shape, dtype=torch.float32)
    launch(problem, choice, architecture, left, right, inner, Epilogue(chunks))
    _sum(chunks, rows * batches, columns, architecture, whole)


def _batch(a: Tensor, b: Tensor, out: Tensor) -> Batch:
    """The leading dimensions of `out` but those of extent 1, merged where both operands allow."""
    batch: Batch = []
    for d in range(-out.dim(), -2):
        size = out.size(d)
        if size == 1:
            continue
        stride_a, stride_b = (t.stride(d) if -d <= t.dim() and t.size(d) > 1 else 0 for t in (a, b))
        if batch:
            outer, outer_a, outer_b = batch[-1]
            if (outer_a, outer_b) == (stride_a * size, stride_b * size):
                batch[-1] = (outer * size, stride_a, stride_b)
                continue
        batch.append((size, stride_a, stride_b))
    return batch


def _tiled(
    problem: Problem,
    choice: Choice,
    architecture: Architecture,
    a: Operand,
    b: Operand,
    inner: int,
    epilogue: Epilogue,
) -> None:
    tile, block_m, block_k = choice.tile, choice.block_m, choice.block_k
    out, bias, residual, activation = epilogue
    widest = max(
        a.reach(block_m, block_k),
        b.reach(tile.n, block_k),
        block_m * max(problem.columns, epilogue.stride) + tile.n,
        choice.chunks * choice.chunk * block_k,
    )
    target.launch(
        tiled_product,
        (problem.tiles(tile) * choice.chunks,),
        a.tensor,
        b.tensor,
        bias,
        residual,
        out,
        *a[1:],
        *b[1:],
        epilogue.stride,
        inner,
        problem.batches,
        problem.rows,
        problem.columns,
        problem.depth,
        choice.chunk,
        BLOCK_M=block_m,
        BLOCK_N=tile.n,
        BLOCK_K=block_k,
        GROUP_M=GROUP_M,
        CHIPLETS=architecture.chiplets,
        VECTOR_M=a.vector(problem.rows),
        VECTOR_N=b.vector(problem.columns),
        WHOLE_K=problem.depth % block_k == 0,
        WIDE=widest >= MOST_32_BITS,
        ACTIVATION=activation,
        PRECISION=architecture.float32_dots if problem.itemsize == 4 else "ieee",
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _persistent(
    problem: Problem,
    choice: Choice,
    architecture: Architecture,
    a: Operand,
    b: Operand,
    inner: int,
    epilogue: Epilogue,
) -> None:
    tile, block_k = choice.tile, choice.block_k
    assert isinstance(tile, PersistentTile)
    out, bias, residual, activation = epilogue
    rows, columns, depth, batches = problem.rows, problem.columns, problem.depth, problem.batches
    widest = max(t.element_size() for t in (out, residual) if t is not None)
    part_n = min(PART_N_BYTES // widest, tile.n)
    batches_a, batches_b = (1 if x.inner == 0 else batches for x in (a, b))
    target.launch(
        persistent_product,
        (min(problem.tiles(tile) * choice.chunks, architecture.units),),
        boxes.of_operand(a, batches_a, rows, depth, choice.block_m, block_k),
        boxes.of_operand(b, batches_b, columns, depth, tile.n, block_k),
        boxes.of_output(out, choice.chunks * batches, rows, columns, choice.block_m, part_n),
        bias,
        residual,
        epilogue.stride,
        batches,
        batches_a,
        batches_b,
        rows,
        columns,
        choice.chunks,
        choice.chunk,
        BLOCK_M=choice.block_m,
        BLOCK_N=tile.n,
        BLOCK_K=block_k,
        PART_N=part_n,
        GROUP_M=GROUP_M,
        A_TRANSPOSED=a.along != 1,
        B_TRANSPOSED=b.along == 1,
        SPECIALIZED=tile.specialized,
        WIDE=choice.block_m * epilogue.stride + part_n >= MOST_32_BITS,
        ACTIVATION=activation,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _sum(
    chunks: Tensor, rows: int, columns: int, architecture: Architecture, epilogue: Epilogue
) -> None:
    out, bias, residual, activation = epilogue
    tile = SUM.choose(architecture, "any")
    block_m = min(tile.m, power_of_2(rows))
    target.launch(
        sum_of_chunks,
        (divide_up(rows, block_m) * divide_up(columns, tile.n),),
        chunks,
        bias,
        residual,
        out,
        epilogue.stride,
        rows,
        columns,
        chunks.size(0),
        BLOCK_M=block_m,
        BLOCK_N=tile.n,
        STAGES=tile.stages,
        WIDE=block_m * max(columns, epilogue.stride) + tile.n >= MOST_32_BITS,
        ACTIVATION=activation,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
