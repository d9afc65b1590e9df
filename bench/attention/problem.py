"""What is to be attended: shapes, the mask, and how much work they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.case import Task
from bench.peers.question import Attention


@dataclass(frozen=True)
class Problem:
    """Prints as batch × heads of queries/of keys × queries × keys × head size."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    dim: int
    causal: bool = False  # the last query is aligned with the last key
    window: int = 0  # of a causal one: how many keys a query sees, its own included; 0 for all

    def __str__(self) -> str:
        shape = (self.batch, f"{self.heads}/{self.kv_heads}", self.queries, self.keys, self.dim)
        notes = (", causal" if self.causal else "") + (
            f", window {self.window}" if self.window else ""
        )
        return "×".join(map(str, shape)) + notes

    @property
    def window_left(self) -> int:
        """The window as lanewise takes it."""
        return self.window - 1

    @property
    def scores(self) -> int:
        """How many are not masked, in all heads."""
        most = self.window or self.keys
        before = self.keys - self.queries if self.causal else self.keys
        seen = sum(min(before + query + 1, most, self.keys) for query in range(self.queries))
        return self.batch * self.heads * seen

    @property
    def numel(self) -> int:
        """Elements of queries, keys, values and outputs together."""
        tokens = self.heads * self.queries + self.kv_heads * self.keys
        return 2 * self.batch * tokens * self.dim

    def visible(self, queries: Tensor) -> Tensor:
        """[queries, keys] bool: which keys each of these queries attends."""
        distance = torch.arange(self.keys) - (queries[:, None] + self.keys - self.queries)
        seen = distance <= (0 if self.causal else self.keys)
        return seen & (distance > -self.window) if self.window else seen

    def operands(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Random q, k and v."""
        q = torch.randn(self.batch, self.heads, self.queries, self.dim)
        k, v = (torch.randn(self.batch, self.kv_heads, self.keys, self.dim) for _ in range(2))
        return q.to(dtype), k.to(dtype), v.to(dtype)

    def question(self, q: Tensor, k: Tensor, v: Tensor) -> Attention:
        """What peers are asked."""
        return Attention(q, k, v, self.causal and self.queries > 1, self.window)

    def task(self, op: str, dtype: torch.dtype, series: str = "") -> Task:
        """Two products for each score, and every operand touched once."""
        return Task(
            f"{op} {self}",
            dtype,
            flops=4 * self.scores * self.dim,
            bytes=self.numel * dtype.itemsize,
            series=series,
            rows=self.queries,
        )
