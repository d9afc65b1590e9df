"""activation(x @ gate + gate_bias) · (x @ up + up_bias) into a given tensor: chooses the kernel and
launches it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from triton.tools.tensor_descriptor import TensorDescriptor

from .. import target
from ..target import Architecture, divide_up, power_of_2
from . import boxes
from .gated_kernels import persistent_gated_product, sum_of_gated_chunks, tiled_gated_product
from .gated_tiles import GATED, SUM
from .operand import MOST_32_BITS, Operand
from .tiles import FEW_ROWS, GROUP_M, PART_N_BYTES, Choice, PersistentTile, Problem


class Operands(NamedTuple):
    """Rows of x, and columns of both weights."""

    x: Operand
    gate: Operand
    up: Operand


class Epilogue(NamedTuple):
    """activation(gate's sums + gate_bias) · (up's sums + up_bias) into `out`, and both sums, biases
    added; each where it is wanted."""

    out: Tensor | None
    gate_sums: Tensor | None
    up_sums: Tensor | None
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    activation: str = "none"


def gated_product(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    out: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    gate_sums: Tensor | None = None,
    up_sums: Tensor | None = None,
) -> None:
    """activation(x @ gate + gate_bias) · (x @ up + up_bias) into `out`, accumulated in float32;
    checks nothing.

    Args:
        x: [M, K], float32, bfloat16 or float16, any strides.
        gate, up: [K, N], x's dtype, any strides.
        out: [M, N], any floating dtype, contiguous.
        gate_bias, up_bias: [N], any floating dtype, stride 1.
        activation: one of `lanewise.kernels.activation.ACTIVATIONS`.
        gate_sums, up_sums: [M, N], float32, contiguous: both or neither; what the activation and
            the product saw.
    """
    if out.numel() == 0:
        return
    (rows, depth), columns = x.shape, gate.size(1)
    operands = Operands(
        Operand(x, 0, 0, *x.stride()),
        Operand(gate, 0, 0, *reversed(gate.stride())),
        Operand(up, 0, 0, *reversed(up.stride())),
    )
    architecture = target.of(x.device)
    in_boxes = rows > FEW_ROWS and boxes.describable(operands, out, rows, columns, depth)
    aligned = all(
        operand.aligned(extent, depth)
        for operand, extent in zip(operands, (rows, columns, columns), strict=True)
    )
    problem = Problem(
        rows, columns, depth, 1, x.element_size(), in_boxes, tables=GATED, aligned=aligned
    )
    choice = problem.choose(architecture)
    whole = Epilogue(out, gate_sums, up_sums, gate_bias, up_bias, activation)
    launch = _persistent if isinstance(choice.tile, PersistentTile) else _tiled
    if choice.chunks == 1:
        launch(problem, choice, architecture, operands, whole)
        return
    gate_chunks, up_chunks = (
        out.new_empty(choice.chunks, rows, columns, dtype=torch.float32) for _ in range(2)
    )
    launch(problem, choice, architecture, operands, Epilogue(None, gate_chunks, up_chunks))
    _sum(gate_chunks, up_chunks, architecture, whole)


def _tiled(
    problem: Problem,
    choice: Choice,
    architecture: Architecture,
    operands: Operands,
    epilogue: Epilogue,
) -> None:
    tile, block_m, block_k = choice.tile, choice.block_m, choice.block_k
    (x, gate, up), (out, gate_sums, up_sums, gate_bias, up_bias, activation) = operands, epilogue
    widest = max(
        x.reach(block_m, block_k),
        gate.reach(tile.n, block_k),
        up.reach(tile.n, block_k),
        block_m * problem.columns + tile.n,
        choice.chunks * choice.chunk * block_k,
    )
    target.launch(
        tiled_gated_product,
        (problem.tiles(tile) * choice.chunks,),
        x.tensor,
        gate.tensor,
        up.tensor,
        gate_bias,
        up_bias,
        out,
        gate_sums,
        up_sums,
        *x[3:],
        *gate[3:],
        *up[3:],
        problem.rows,
        problem.columns,
        problem.depth,
        choice.chunk,
        BLOCK_M=block_m,
        BLOCK_N=tile.n,
        BLOCK_K=block_k,
        GROUP_M=GROUP_M,
        CHIPLETS=architecture.chiplets,
        VECTOR_N=min(gate.vector(problem.columns), up.vector(problem.columns)),
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
    operands: Operands,
    epilogue: Epilogue,
) -> None:
    tile, block_m, block_k = choice.tile, choice.block_m, choice.block_k
    assert isinstance(tile, PersistentTile)
    (x, gate, up), (out, gate_sums, up_sums, gate_bias, up_bias, activation) = operands, epilogue
    rows, columns, depth = problem.rows, problem.columns, problem.depth
    stored = [t for t in (out, gate_sums, up_sums) if t is not None]
    part_n = min(PART_N_BYTES // max(t.element_size() for t in stored), tile.n)

    def stored_in(t: Tensor | None, matrices: int) -> TensorDescriptor | None:
        return t if t is None else boxes.of_output(t, matrices, rows, columns, block_m, part_n)

    target.launch(
        persistent_gated_product,
        (min(problem.tiles(tile) * choice.chunks, architecture.units),),
        boxes.of_operand(x, 1, rows, depth, block_m, block_k),
        boxes.of_operand(gate, 1, columns, depth, tile.n, block_k),
        boxes.of_operand(up, 1, columns, depth, tile.n, block_k),
        stored_in(out, 1),
        stored_in(gate_sums, choice.chunks),
        stored_in(up_sums, choice.chunks),
        gate_bias,
        up_bias,
        rows,
        columns,
        choice.chunks,
        choice.chunk,
        BLOCK_M=block_m,
        BLOCK_N=tile.n,
        BLOCK_K=block_k,
        PART_N=part_n,
        GROUP_M=GROUP_M,
        X_TRANSPOSED=x.along != 1,
        GATE_TRANSPOSED=gate.along == 1,
        UP_TRANSPOSED=up.along == 1,
        SPECIALIZED=tile.specialized,
        ACTIVATION=activation,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _sum(
    gate_chunks: Tensor, up_chunks: Tensor, architecture: Architecture, epilogue: Epilogue
) -> None:
    out, gate_sums, up_sums, gate_bias, up_bias, activation = epilogue
    chunks, rows, columns = gate_chunks.shape
    tile = SUM.choose(architecture, "any")
    block_m = min(tile.m, power_of_2(rows))
    target.launch(
        sum_of_gated_chunks,
        (divide_up(rows, block_m) * divide_up(columns, tile.n),),
        gate_chunks,
        up_chunks,
        gate_bias,
        up_bias,
        out,
        gate_sums,
        up_sums,
        rows,
        columns,
        chunks,
        BLOCK_M=block_m,
        BLOCK_N=tile.n,
        STAGES=tile.stages,
        WIDE=block_m * columns + tile.n >= MOST_32_BITS,
        ACTIVATION=activation,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
