"""Keys and values of past tokens, in blocks that sequences take as they grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lanewise.nn.position import RotaryEmbedding


@dataclass(frozen=True)
class LayerCache:
    """What one layer needs to attend its cache: both caches, and where the new tokens go.

    ``k`` and ``v`` are [blocks, block_size, Hkv, D]; the rest is named as the arguments of
    `lanewise.paged_attention` and `lanewise.paged_cache_write`.
    """

    k: Tensor
    v: Tensor
    step: CacheStep


@dataclass(frozen=True)
class CacheStep:
    """The new tokens of one step, packed one sequence after another: the same for every layer."""

    cu_seqlens_q: Tensor  # [B + 1], int64
    block_table: Tensor  # [B, blocks of a sequence], int32
    context_lens: Tensor  # [B], int32, the new tokens included
    slots: Tensor  # [T], int64
    positions: Tensor  # [T], int64, each token's place in its sequence
    max_seqlen_q: int
    _angles: dict[RotaryEmbedding, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def angles(self, rotary: RotaryEmbedding) -> tuple[Tensor, Tensor]:
        """(cos, sin) [T, R/2] of the new tokens, looked up once for all layers."""
        found = self._angles.get(rotary)
        if found is None:
            found = self._angles[rotary] = rotary.angles(self.positions)
        return found


class PagedCache:
    """The keys and values of ``batch`` sequences, for every layer of a model.

    The layout is that of PagedAttention (Kwon et al., 2023). Storage for all blocks is reserved at
    once, which costs memory only where it is written; a sequence takes blocks as it grows, and
    gives them back when it is dropped.

    Args:
        layers: number of layers.
        num_kv_heads, head_dim: of each.
        batch: number of sequences, all empty.
        max_tokens: the most tokens of one sequence.
        block_size: tokens in a block.
    """

    def __init__(
        self,
        layers: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        batch: int,
        max_tokens: int,
        block_size: int = 64,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> None:
        sizes = (("batch", batch), ("max_tokens", max_tokens), ("block_size", block_size))
        for name, value in sizes:
            if value < 1:
                raise ValueError(f"lanewise.nn.PagedCache: {name} must be at least 1, got {value}")
        self.max_tokens = max_tokens
        self.block_size = block_size
        self.lengths = [0] * batch
        per_sequence = -(-max_tokens // block_size)
        shape = (batch * per_sequence, block_size, num_kv_heads, head_dim)
        self.layers = [
            (
                torch.empty(shape, dtype=dtype, device=device),
                torch.empty(shape, dtype=dtype, device=device),
            )
            for _ in range(layers)
        ]
        self._free = list(range(batch * per_sequence - 1, -1, -1))
        self._blocks: list[list[int]] = [[] for _ in range(batch)]
        # On the CPU wherever the storage is: it is written one entry at a time.
        self._table = torch.zeros(batch, per_sequence, dtype=torch.int32)

    def extend(self, counts: Sequence[int]) -> CacheStep:
        """Makes room for ``counts[b]`` new tokens of each sequence b.

        Raises:
            ValueError: not one count for each sequence, a negative one, or a sequence would grow
                beyond ``max_tokens``. Nothing has changed then.
        """
        if len(counts) != len(self.lengths):
            raise ValueError(
                f"lanewise.nn.PagedCache: counts must have an entry for each of the "
                f"{len(self.lengths)} sequences, got {len(counts)}"
            )
        for b, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
            if count < 0:
                raise ValueError(
                    f"lanewise.nn.PagedCache: counts must not be negative, got {count} for "
                    f"sequence {b}"
                )
            if length + count > self.max_tokens:
                raise ValueError(
                    f"lanewise.nn.PagedCache: a sequence may have at most {self.max_tokens} "
                    f"tokens, sequence {b} would have {length + count}"
                )
        # Lists of numbers: at one token a dozen small tensor operations would take longer.
        size = self.block_size
        starts, positions, slots = [0], list[int](), list[int]()
        for b, count in enumerate(counts):
            begin, end = self.lengths[b], self.lengths[b] + count
            blocks = self._grow(b, end)
            positions += range(begin, end)
            slots += [blocks[p // size] * size + p % size for p in range(begin, end)]
            starts.append(starts[-1] + count)
        device = self.layers[0][0].device if self.layers else None
        return CacheStep(
            cu_seqlens_q=torch.tensor(starts, device=device),
            block_table=self._table.to(device),
            context_lens=torch.tensor(self.lengths, dtype=torch.int32, device=device),
            slots=torch.tensor(slots, dtype=torch.int64, device=device),
            positions=torch.tensor(positions, dtype=torch.int64, device=device),
            max_seqlen_q=max(counts, default=0),
        )

    def layer(self, index: int, step: CacheStep) -> LayerCache:
        """The part of one layer."""
        return LayerCache(*self.layers[index], step)

    def keep(self, indices: Sequence[int]) -> None:
        """Goes on with these sequences, in this order; the blocks of the others become free.

        Raises:
            ValueError: an index comes twice, or is none of the sequences'; nothing has changed
                then.
        """
        count = len(self.lengths)
        if len(set(indices)) != len(indices) or not all(0 <= b < count for b in indices):
            raise ValueError(
                f"lanewise.nn.PagedCache: indices must be different ones from 0 to {count - 1}, "
                f"got {list(indices)}"
            )
        dropped = set(range(len(self.lengths))) - set(indices)
        for b in sorted(dropped):
            self._free += reversed(self._blocks[b])
        self.lengths = [self.lengths[b] for b in indices]
        self._blocks = [self._blocks[b] for b in indices]
        self._table = self._table[list(indices)]

    def _grow(self, b: int, length: int) -> list[int]:
        """Gives sequence b the blocks that ``length`` tokens need, and returns all it has."""
        blocks, self.lengths[b] = self._blocks[b], length
        while len(blocks) * self.block_size < length:
            self._table[b, len(blocks)] = self._free[-1]
            blocks.append(self._free.pop())
        return blocks
