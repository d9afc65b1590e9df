"""Chooses a tile for a problem of attention and launches its forward kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import target
from ..alignment import aligned
from ..target import Architecture
from .forward import attention_forward
from .merge import attention_merge
from .problem import check_options
from .tiles import FEW_QUERIES, FORWARD, MERGE, Tile

# A program with fewer tiles of keys is not worth a piece of its own, nor is a problem with fewer.
LEAST_TILES, UNSPLIT_TILES = 2, 4
PROGRAMS_PER_UNIT = 2

Strides = tuple[int, ...]  # of sequences (or pages), heads and tokens


class Sequences(NamedTuple):
    """How the sequences of a call lie in memory.

    `len_q` and `len_k` are the lengths of padded sequences, and bounds of those of others, which
    `starts_q`, `starts_k`, `contexts` and `table` describe. Keys lie in `pages` of `page` tokens.
    """

    batch: int
    heads_kv: int
    len_q: int
    len_k: int
    tokens_q: int
    tokens_k: int
    q: Strides
    k: Strides
    v: Strides
    starts_q: Tensor | None = None
    starts_k: Tensor | None = None
    contexts: Tensor | None = None
    table: Tensor | None = None
    page: int | None = None
    pages: int = 0


class Options(NamedTuple):
    """What changes the scores: the options of every op, in the order of the schema."""

    bias: Tensor | None
    sinks: Tensor | None
    alibi_slopes: Tensor | None
    causal: bool
    window_left: int
    window_right: int
    softcap: float
    scale: float | None


def bias_strides(bias: Tensor | None) -> tuple[int, ...]:
    """Of a bias seen as [B, H, Sq, Sk], whatever these are."""
    if bias is None:
        return (0, 0, 0, 0)
    strides = [0 if n == 1 else s for n, s in zip(bias.shape, bias.stride(), strict=True)]
    return (*(0,) * (4 - bias.dim()), *strides)


def count_pieces(programs: int, keys: int, tile: Tile, architecture: Architecture) -> int:
    """Among how many programs the `keys` that one would walk over are split: enough to fill the
    GPU, of work enough for each."""
    tiles = target.divide_up(keys, tile.n)
    if tiles <= UNSPLIT_TILES:
        return 1
    wanted = PROGRAMS_PER_UNIT * architecture.units // programs
    return max(1, min(wanted, tiles // LEAST_TILES))


def attend(
    op: str, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, s: Sequences, o: Options
) -> None:
    """The forward pass of tensors that have been checked, into `out` and `lse`."""
    size, size_v, heads = q.size(-1), v.size(-1), q.size(1)
    scale = size**-0.5 if o.scale is None else o.scale
    check_options(o.window_left, o.window_right, o.softcap, scale, op)
    if lse.numel() == 0:
        return
    if s.batch == 0 or s.len_q == 0:  # tokens that no sequence owns
        out.fill_(torch.nan)
        lse.fill_(torch.nan)
        return
    # A window as wide as the problem is no window; wider ones could overflow the 32-bit sums.
    widest = s.len_q + s.len_k
    left = None if o.window_left < 0 or o.window_left >= widest else o.window_left
    right = None if o.window_right < 0 or o.window_right >= widest else o.window_right
    right = 0 if o.causal else right
    bias, slopes = o.bias, o.alibi_slopes
    strides_b = bias_strides(bias)
    if bias is not None and bias.dtype == torch.bool:
        bias = bias.view(torch.uint8)

    architecture = target.of(q.device)
    block_d, block_dv = target.block(size), target.block(size_v)
    group = heads // s.heads_kv
    bare = scale > 0 and o.softcap == 0 and bias is None and slopes is None
    few = s.len_q <= FEW_QUERIES
    kind = "few" if few else "bare" if bare else "scored"
    if s.page is not None:
        kind = "paged few" if few else "paged"
    sizes = f"{8 * q.element_size()} {max(64, block_d, block_dv)}"
    unaligned = None
    if not aligned((q, k, v), *s.q, *s.k, *s.v, size, size_v):
        unaligned = f"unaligned few {sizes}" if few else f"unaligned {sizes}"
    tile = FORWARD.choose(architecture, f"{kind} {sizes}", unaligned)
    pack = group if few and tile.packs else 1
    programs = target.divide_up(s.len_q * pack, tile.m) * (heads // pack) * s.batch
    splits = 1
    if few:
        seen = s.len_k if left is None or right is None else left + s.len_q + right
        splits = count_pieces(programs, min(seen, s.len_k), tile, architecture)
    sinks = None if o.sinks is None else o.sinks.contiguous()
    outputs: tuple[Tensor | None, ...] = (out, lse, None)
    rows = s.tokens_q * heads
    if splits > 1:
        parts = q.new_empty(splits, rows, size_v, dtype=torch.float32)
        maxima, sums = q.new_empty(2, splits, rows, dtype=torch.float32)
        outputs = (parts, maxima, sums)
    target.launch(
        attention_forward,
        (programs * splits,),
        q,
        k,
        v,
        bias,
        sinks,
        None if slopes is None else slopes.contiguous(),
        *outputs,
        s.starts_q,
        s.starts_k,
        s.contexts,
        s.table,
        *s.q,
        *s.k,
        *s.v,
        *strides_b,
        heads if slopes is not None and slopes.dim() == 2 else 0,
        0 if s.table is None else s.table.stride(0),
        s.batch,
        heads,
        group,
        pack,
        splits,
        LEAST_TILES,
        s.tokens_q,
        s.tokens_k,
        s.len_q,
        s.len_k,
        s.pages,
        scale,
        o.softcap or None,
        left,
        right,
        D=size,
        DV=size_v,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_D=block_d,
        STEP_D=min(block_d, tile.d),
        BLOCK_DV=block_dv,
        PAGE=s.page,
        MIXED=s.page is not None and not few and group > 1,
        FUSED_SCALE=bare,
        WIDE=max(tile.n * s.k[2], tile.n * s.v[2], s.len_k * strides_b[3]) >= 2**31,
        PRECISION=architecture.float32_dots if q.dtype == torch.float32 else "ieee",
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if splits == 1:
        return
    merge = MERGE.choose(architecture, str(max(64, block_dv)))
    target.launch(
        attention_merge,
        (rows,),
        *outputs,
        sinks,
        out,
        lse,
        rows,
        splits,
        heads,
        s.len_q if s.starts_q is None else s.tokens_q,
        DV=size_v,
        PACKED=s.starts_q is not None,
        BLOCK_S=merge.s,
        BLOCK_DV=block_dv,
        num_warps=merge.warps,
        num_stages=merge.stages,
    )
