"""Hypothesis strategies: shapes that divide nothing nicely, dtypes, and strided layouts.

A drawn tensor is described by a small `Spec` (what shrinks and prints well) and made from a seed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# All keep stride 1 innermost. `expanded` has stride 0 in its first dimension, `transposed` lies in
# memory with two outer dimensions swapped, `sliced` is a window into a larger buffer.
LAYOUTS = ("contiguous", "expanded", "transposed", "sliced")

dtypes = st.sampled_from(DTYPES)
layouts = st.sampled_from(LAYOUTS)
seeds = st.integers(0, 2**31 - 1)
activations = st.sampled_from(("none", "relu", "gelu", "gelu_tanh", "silu", "tanh"))

# Extents of matrix products and sequences: nothing, one, around the lanes and tiles, and beyond.
extents = st.sampled_from((0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 63, 65, 97, 130))
positive_extents = extents.filter(bool)
sequences = st.sampled_from((0, 1, 2, 3, 7, 16, 17, 33, 64, 65, 129, 190))
short_sequences = st.sampled_from((0, 1, 2, 5, 17, 33))
head_dims = st.sampled_from((1, 2, 3, 8, 15, 16, 17, 40, 64, 65, 80, 127))
hidden_sizes = st.sampled_from((0, 1, 2, 3, 7, 8, 16, 17, 31, 64, 100, 255, 384, 1023))


def or_interpreted(extent: int, less: int) -> int:
    """`extent`, or `less` where Triton's interpreter would take too long over it."""
    return less if os.environ.get("TRITON_INTERPRET") == "1" else extent


@dataclass(frozen=True)
class AttentionShape:
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int

    @property
    def q(self) -> tuple[int, ...]:
        return (self.batch, self.heads, self.queries, self.head_dim)

    @property
    def k(self) -> tuple[int, ...]:
        return (self.batch, self.kv_heads, self.keys, self.head_dim)

    @property
    def v(self) -> tuple[int, ...]:
        return (self.batch, self.kv_heads, self.keys, self.value_dim)

    @property
    def scores(self) -> tuple[int, ...]:
        return (self.batch, self.heads, self.queries, self.keys)


@st.composite
def attention_shapes(draw: st.DrawFn) -> AttentionShape:
    group = draw(st.sampled_from((1, 2, 3, 5, 7, 71)))
    many = group == 71  # heads enough: keep the rest small, the float64 reference holds all scores
    kv_heads = 1 if many else draw(st.integers(1, 3))
    lengths = short_sequences if many else sequences
    head_dim = draw(head_dims)
    return AttentionShape(
        batch=draw(st.sampled_from((1, 0) if many else (1, 2, 3, 0))),
        heads=group * kv_heads,
        kv_heads=kv_heads,
        queries=draw(lengths),
        keys=draw(lengths),
        head_dim=head_dim,
        value_dim=draw(st.one_of(st.just(head_dim), head_dims)),
    )


batch_shapes = st.lists(st.sampled_from((1, 2, 3, 0)), min_size=0, max_size=3).map(tuple)


@st.composite
def broadcast_to(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to `shape`: any dimensions set to 1, any leading ones dropped."""
    kept = [1 if draw(st.booleans()) else extent for extent in shape]
    return tuple(kept[draw(st.integers(0, len(kept))) :])


@st.composite
def outer_broadcast_to(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Like `broadcast_to`, with the last dimension kept whole."""
    return (*draw(broadcast_to(shape[:-1])), shape[-1])


def randn(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    layout: str = "contiguous",
    scale: float = 1.0,
) -> Tensor:
    """Normal values of the given shape and dtype, lying in memory as `layout` says."""
    generator = torch.Generator().manual_seed(seed)

    def fresh(*size: int) -> Tensor:
        return (torch.randn(size, generator=generator) * scale).to(dtype)

    if layout == "contiguous" or len(shape) < 2:
        return fresh(*shape)
    if layout == "expanded":
        return fresh(1, *shape[1:]).expand(shape)
    if layout == "transposed" and len(shape) > 2:
        a, b = len(shape) - 3, len(shape) - 2
        swapped = list(shape)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        return fresh(*swapped).transpose(a, b)
    # sliced; a matrix has no two outer dimensions to swap, so its rows are set apart instead
    window = tuple(slice(1, 1 + extent) for extent in shape)
    return fresh(*(extent + 3 for extent in shape))[window]


def values(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> st.SearchStrategy:
    """Tensors of one shape and dtype over all layouts."""
    return st.builds(lambda seed, layout: randn(shape, dtype, seed, layout, scale), seeds, layouts)
