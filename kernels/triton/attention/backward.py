"""The gradients of attention, without a score matrix in memory, and without atomics.

Scores are made again from the inputs and lse: once by programs that own keys, for dK and dV, once
by programs that own queries, for dQ, and once more for the gradient of a bias. Each number is
summed by one program in a fixed order, so that the same inputs give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import check, target
from ..alignment import aligned
from .backward_bias import attention_backward_bias, attention_backward_sums
from .backward_keys import attention_backward_keys
from .backward_queries import attention_backward_queries
from .backward_rows import attention_backward_rows, attention_backward_sinks
from .problem import check_options, check_packed, check_tensors
from .tiles_backward import BIAS, KEYS, PROGRAMS, QUERIES, ROWS, SUMS, Tile

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    out: Tensor,
    lse: Tensor,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    scale: float | None = None,
    needs_bias: bool = False,
    needs_sinks: bool = False,
) -> Gradients:
    """The gradients of `attention`, whose arguments and outputs these are.

    Args:
        grad_out: [B, H, Sq, Dv] in q's dtype; grad_lse: [B, H, Sq] float32, or None for zeros.
        q, k, v, bias, sinks, alibi_slopes and options: as `attention` got them.
        out: [B, H, Sq, Dv], lse: [B, H, Sq]: as `attention` gave them.
        needs_bias, needs_sinks: whether the gradients of a floating bias and of sinks are made.

    Returns:
        grad_q, grad_k, grad_v in the shapes and the dtype of q, k, v; grad_bias in bias's shape and
        grad_sinks [H], float32, of size 0 where not needed. All contiguous.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, rank, shape, stride or value.
    """
    op = "attention_backward"
    check_tensors(q, k, v, bias, sinks, alibi_slopes, op)
    scale = q.size(3) ** -0.5 if scale is None else scale
    check_options(window_left, window_right, softcap, scale, op)
    batch, heads, len_q = q.shape[:3]
    _check_outputs(op, grad_out, grad_lse, out, lse, q, [*q.shape[:3], v.size(3)], q.shape[:3])
    _check_needs(op, bias, sinks, needs_bias, needs_sinks)
    problem = Problem(
        batch, (heads, k.size(1)), (len_q, k.size(2)), (len_q, k.size(2)), (None, None), _padded
    )
    tensors = (grad_out, grad_lse, q, k, v, bias, sinks, alibi_slopes, out, lse)
    window = (window_left, 0 if causal else window_right)
    return _gradients(problem, *tensors, window, softcap, scale, needs_bias, needs_sinks)


def attention_varlen_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    bias: Tensor | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    out: Tensor,
    lse: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    scale: float | None = None,
    needs_bias: bool = False,
    needs_sinks: bool = False,
) -> Gradients:
    """The gradients of `attention_varlen`, whose arguments and outputs these are.

    Args:
        grad_out: [Tq, H, Dv] in q's dtype; grad_lse: [H, Tq] float32, or None for zeros.
        q, k, v, cu_seqlens, bias, sinks, alibi_slopes and options: as `attention_varlen` got them.
        out: [Tq, H, Dv], lse: [H, Tq]: as `attention_varlen` gave them.
        needs_bias, needs_sinks: whether the gradients of a floating bias and of sinks are made.

    Returns:
        As `attention_backward`. The gradients of a sequence whose `cu_seqlens` are wrong are NaN.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, rank, shape, stride or value; with
            LANEWISE_CHECK_INDEXES=1 also where a `cu_seqlens` is wrong.
    """
    op = "attention_varlen_backward"
    packing = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    check_packed(op, q, k, v, *packing, bias, sinks, alibi_slopes)
    scale = q.size(2) ** -0.5 if scale is None else scale
    check_options(window_left, window_right, softcap, scale, op)
    (tokens_q, heads), (tokens_k, heads_kv) = q.shape[:2], k.shape[:2]
    shape = [tokens_q, heads, v.size(2)]
    _check_outputs(op, grad_out, grad_lse, out, lse, q, shape, (heads, tokens_q))
    _check_needs(op, bias, sinks, needs_bias, needs_sinks)
    problem = Problem(
        cu_seqlens_q.size(0) - 1,
        (heads, heads_kv),
        (tokens_q, tokens_k),
        (min(max_seqlen_q, tokens_q), min(max_seqlen_k, tokens_k)),
        (cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous()),
        _packed,
    )
    tensors = (grad_out, grad_lse, q, k, v, bias, sinks, alibi_slopes, out, lse)
    window = (window_left, 0 if causal else window_right)
    return _gradients(problem, *tensors, window, softcap, scale, needs_bias, needs_sinks)


# --- checks --------------------------------------------------------------------------------------


def _check_outputs(
    op: str,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    shape_out: list[int],
    shape_lse: tuple[int, ...],
) -> None:
    given = (
        ("grad_out", grad_out, q.dtype, shape_out),
        ("out", out, q.dtype, shape_out),
        ("lse", lse, torch.float32, shape_lse),
        ("grad_lse", grad_lse, torch.float32, shape_lse),
    )
    for name, x, dtype, shape in given:
        if x is None:
            continue
        check.require_device(op, name, x, q.device)
        check.require_dtype(op, name, x, dtype)
        check.require(
            x.shape == torch.Size(shape),
            op,
            f"{name} must have the shape of the forward's output, {list(shape)},"
            f" got {list(x.shape)}",
        )


def _check_needs(
    op: str, bias: Tensor | None, sinks: Tensor | None, needs_bias: bool, needs_sinks: bool
) -> None:
    check.require(
        not needs_bias or (bias is not None and bias.dtype != torch.bool),
        op,
        "needs_bias asks for the gradient of a bias that is not floating",
    )
    check.require(
        not needs_sinks or sinks is not None,
        op,
        "needs_sinks asks for the gradient of sinks not given",
    )


# --- launches ------------------------------------------------------------------------------------


def _padded(x: Tensor) -> tuple[int, ...]:
    return x.stride()[:3]


def _packed(x: Tensor) -> tuple[int, ...]:
    return 0, x.stride(1), x.stride(0)


@dataclass(frozen=True)
class Problem:
    """Sequences as the kernels see them; pairs are of queries and of keys.

    `tokens` counts those of all packed sequences, or of each padded one; `longest` bounds a
    sequence. `strides` tells the strides of batch, head and token of what is laid out as q.
    """

    batch: int
    heads: tuple[int, int]
    tokens: tuple[int, int]
    longest: tuple[int, int]
    starts: tuple[Tensor | None, Tensor | None]
    strides: Callable[[Tensor], tuple[int, ...]]

    @property
    def packed(self) -> bool:
        return self.starts[0] is not None


def _gradients(
    problem: Problem,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    out: Tensor,
    lse: Tensor,
    window: tuple[int, int],
    softcap: float,
    scale: float,
    needs_bias: bool,
    needs_sinks: bool,
) -> Gradients:
    architecture = target.of(q.device)
    grad_q, grad_k, grad_v = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    grad_bias = lse.new_empty(bias.shape if needs_bias and bias is not None else (0,))
    grad_sinks = lse.new_empty((problem.heads[0] if needs_sinks else 0,))
    lse, grad_out = lse.contiguous(), grad_out.contiguous()
    stats = _row_stats(architecture, problem, out.contiguous(), grad_out, grad_lse, lse)

    # A window as wide as the problem is no window; wider ones could overflow the 32-bit sums.
    widest = sum(problem.longest)
    heads, tokens_q = problem.heads[0], problem.tokens[0]
    bias_sizes, bias_strides = _broadcast(bias)
    shared = (
        q,
        k,
        v,
        bias.view(torch.uint8) if bias is not None and bias.dtype == torch.bool else bias,
        None if alibi_slopes is None else alibi_slopes.contiguous(),
        grad_out,
        *stats,
        *problem.starts,
        *(stride for x in (q, k, v, grad_out) for stride in problem.strides(x)),
        0 if problem.packed else heads * tokens_q,
        tokens_q,
        *bias_strides,
        heads if alibi_slopes is not None and alibi_slopes.dim() == 2 else 0,
        problem.batch,
        *problem.heads,
        *problem.tokens,
        *problem.longest,
        scale,
        softcap or None,
        *(None if w < 0 or w >= widest else w for w in window),
    )
    bare = softcap == 0 and bias is None and alibi_slopes is None
    products = _Products(architecture, problem, shared, q, k, v, grad_out, bias_strides, bare)
    products.launch_keys(grad_k, grad_v)
    products.launch_queries(grad_q)
    if needs_bias:
        products.launch_bias(grad_bias, bias_sizes)
    if needs_sinks and sinks is not None:
        _sink_sums(architecture, problem, sinks.contiguous(), lse, stats[0], grad_sinks)
    return grad_q, grad_k, grad_v, grad_bias, grad_sinks


def _broadcast(bias: Tensor | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes and strides of the bias over batch, head, query and key; 0 where it is one for all."""
    if bias is None:
        return (1, 1, 1, 1), (0, 0, 0, 0)
    missing = (4 - bias.dim()) * (1,)
    strides = (0 if n == 1 else s for n, s in zip(bias.shape, bias.stride(), strict=True))
    return (*missing, *bias.shape), (*(0 for _ in missing), *strides)


def _row_stats(
    architecture: target.Architecture,
    problem: Problem,
    out: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """δ, lse in units of log 2, and for float32 what float32 leaves of it; laid out as lse."""
    delta, log = torch.empty_like(lse), torch.empty_like(lse)
    rest = torch.empty_like(lse) if out.dtype == torch.float32 else None
    rows, size = lse.numel(), out.size(-1)
    if rows == 0:
        return delta, log, rest
    block = target.block(size)
    tile = ROWS.choose(architecture, f"{max(64, block)}")
    target.launch(
        attention_backward_rows,
        (target.divide_up(rows, tile.r),),
        out,
        grad_out,
        None if grad_lse is None else grad_lse.contiguous(),
        lse,
        delta,
        log,
        rest,
        rows,
        problem.heads[0] if problem.packed else 1,
        problem.tokens[0],
        DV=size,
        BLOCK_R=tile.r,
        BLOCK_DV=block,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return delta, log, rest


def _sink_sums(
    architecture: target.Architecture,
    problem: Problem,
    sinks: Tensor,
    lse: Tensor,
    delta: Tensor,
    grad_sinks: Tensor,
) -> None:
    if grad_sinks.numel() == 0:
        return
    tile = SUMS.choose(architecture, "sinks")
    target.launch(
        attention_backward_sinks,
        (problem.heads[0],),
        sinks,
        lse,
        delta,
        grad_sinks,
        1 if problem.packed else problem.batch,
        problem.heads[0],
        problem.tokens[0],
        BLOCK_R=tile.r,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


class _Products:
    """The three kernels that make scores again, which share most of their arguments."""

    def __init__(
        self,
        architecture: target.Architecture,
        problem: Problem,
        shared: tuple[Any, ...],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grad_out: Tensor,
        bias_strides: tuple[int, ...],
        bare: bool,
    ) -> None:
        self.architecture, self.problem, self.shared = architecture, problem, shared
        self.size, self.size_v = q.size(-1), v.size(-1)
        self.block, self.block_v = target.block(self.size), target.block(self.size_v)
        # How far apart are the rows of a tile.
        strides = problem.strides
        self.apart_q = max(strides(q)[2], strides(grad_out)[2], bias_strides[2])
        self.apart_k = max(strides(k)[2], strides(v)[2], bias_strides[3])
        bits = 8 * q.element_size()
        kind = "any" if bits == 32 else "bare" if bare else "scored"
        self.kind = f"{kind} {bits} {max(64, self.block, self.block_v)}"
        self.bits = f"{bits}"
        read = (q, k, v, grad_out)
        apart = [stride for x in read for stride in strides(x)]
        whole = aligned(read, *apart, self.size, self.size_v)
        self.unaligned = None if whole else f"unaligned {bits}"
        self.precision = architecture.float32_dots if q.dtype == torch.float32 else "ieee"

    def options(self, tile: Tile) -> dict[str, Any]:
        widest = max(tile.m * self.apart_q, tile.n * self.apart_k)
        return {
            "D": self.size,
            "DV": self.size_v,
            "BLOCK_M": tile.m,
            "BLOCK_N": tile.n,
            "STEP_D": min(self.block, tile.d),
            "STEP_DV": min(self.block_v, tile.d),
            "WIDE": widest >= 2**31,
            "PRECISION": self.precision,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        }

    def launch_keys(self, grad_k: Tensor, grad_v: Tensor) -> None:
        problem, tile = self.problem, KEYS.choose(self.architecture, self.kind, self.unaligned)
        block_c, block_cv = min(self.block, tile.c), min(self.block_v, tile.c)
        parts = max(target.divide_up(self.size, block_c), target.divide_up(self.size_v, block_cv))
        blocks = target.divide_up(problem.longest[1], tile.n)
        if grad_k.numel() == 0:
            return
        target.launch(
            attention_backward_keys,
            (blocks * parts * problem.heads[1] * problem.batch,),
            *self.shared,
            grad_k,
            grad_v,
            *problem.strides(grad_k),
            *problem.strides(grad_v),
            BLOCK_D=self.block,
            BLOCK_DV=self.block_v,
            BLOCK_C=block_c,
            BLOCK_CV=block_cv,
            PARTS=parts,
            **self.options(tile),
        )

    def launch_queries(self, grad_q: Tensor) -> None:
        problem, tile = self.problem, QUERIES.choose(self.architecture, self.kind, self.unaligned)
        block_c = min(self.block, tile.c)
        parts = target.divide_up(self.size, block_c)
        blocks = target.divide_up(problem.longest[0], tile.m)
        if grad_q.numel() == 0:
            return
        target.launch(
            attention_backward_queries,
            (blocks * parts * problem.heads[0] * problem.batch,),
            *self.shared,
            grad_q,
            *problem.strides(grad_q),
            BLOCK_D=self.block,
            BLOCK_DV=self.block_v,
            BLOCK_C=block_c,
            PARTS=parts,
            **self.options(tile),
        )

    def launch_bias(self, grad_bias: Tensor, sizes: tuple[int, ...]) -> None:
        if grad_bias.numel() == 0:
            return
        problem, tile = self.problem, BIAS.choose(self.architecture, self.bits, self.unaligned)
        summed = [size == 1 for size in sizes]
        blocks_m = target.divide_up(sizes[2], 1 if summed[2] else tile.m)
        blocks_n = target.divide_up(sizes[3], 1 if summed[3] else tile.n)
        programs = sizes[0] * sizes[1] * blocks_m * blocks_n
        items_m = target.divide_up(problem.longest[0], tile.m) if summed[2] else 1
        items = (
            items_m * (problem.heads[0] if summed[1] else 1) * (problem.batch if summed[0] else 1)
        )
        # Few programs of many items would leave most of the GPU idle: they share the items.
        chunk = max(1, target.divide_up(items * programs, PROGRAMS * self.architecture.units))
        chunks = max(1, target.divide_up(items, chunk))
        sums = grad_bias if chunks == 1 else grad_bias.new_empty(chunks, grad_bias.numel())
        target.launch(
            attention_backward_bias,
            (programs * chunks,),
            *self.shared,
            sums,
            sizes[2],
            sizes[3],
            chunk,
            SUM_B=summed[0],
            SUM_H=summed[1],
            SUM_M=summed[2],
            SUM_N=summed[3],
            **self.options(tile),
        )
        if chunks == 1:
            return
        tile_sums = SUMS.choose(self.architecture, "chunks")
        target.launch(
            attention_backward_sums,
            (target.divide_up(grad_bias.numel(), tile_sums.r),),
            sums,
            grad_bias,
            grad_bias.numel(),
            chunks,
            BLOCK_R=tile_sums.r,
            num_warps=tile_sums.warps,
            num_stages=tile_sums.stages,
        )
