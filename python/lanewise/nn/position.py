"""Position information: rotary tables, learned embeddings, sinusoidal embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lanewise import ops

# Positions whose angles are made at once.
_PIECE = 1024


class RotaryEmbedding(nn.Module):
    """Rotary position embedding (Su et al., "RoFormer", 2021) from tables made once, on
    `lanewise.rope`.

    Holds no parameter and adds nothing to the state dict, so layers can share one. The tables stay
    float32 whatever the model's dtype: in bfloat16 distant positions would fall together.

    Args:
        dim: how many leading elements of each head are rotated; even.
        max_positions: length of the tables.
        base: the angle of pair i at position p is ``p * base**(-2i/dim)``.
        interleaved: pair elements (2i, 2i+1), as GPT-J does, instead of (i, i + dim/2).
        inv_freq: [dim/2], replaces ``base**(-2i/dim)``, for models that rescale their frequencies.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        dim: int,
        max_positions: int,
        *,
        base: float = 10000.0,
        interleaved: bool = False,
        inv_freq: Tensor | None = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"lanewise.nn.RotaryEmbedding: dim must be even, got {dim}")
        self.dim = dim
        self.max_positions = max_positions
        self.base = base
        self.interleaved = interleaved
        self._inv_freq = None if inv_freq is None else tuple(inv_freq.tolist())
        if self._inv_freq is not None and len(self._inv_freq) != dim // 2:
            raise ValueError(
                f"lanewise.nn.RotaryEmbedding: inv_freq must hold {dim // 2} values, "
                f"got {len(self._inv_freq)}"
            )
        self._make_tables(device)

    def _make_tables(self, device: Any) -> None:
        inv_freq = (
            inverse_frequencies(self.dim, self.base, device)
            if self._inv_freq is None
            else torch.tensor(self._inv_freq, dtype=torch.float64, device=device)
        )
        shape = (self.max_positions, self.dim // 2)
        cos, sin = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2))
        # In pieces: in float64 a whole table would take four times the memory of the one it makes.
        for start in range(0, self.max_positions, _PIECE):
            angles = position_angles(min(_PIECE, self.max_positions - start), inv_freq, start)
            cos[start : start + _PIECE] = angles.cos()
            sin[start : start + _PIECE] = angles.sin()
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _apply(self, *args: Any, **kwargs: Any) -> RotaryEmbedding:
        super()._apply(*args, **kwargs)
        self._make_tables(self.cos.device)  # a cast has rounded them, to_empty has emptied them
        return self

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """x [B, H, S, D], D ≥ dim → x rotated, same shape and dtype.

        positions: integer [S] or [B, S]; 0 … S-1 by default.
        """
        cos, sin = self.angles(x.shape[2] if positions is None else positions)
        return ops.rope(x, cos, sin, interleaved=self.interleaved)

    def angles(self, positions: int | Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin), each [..., dim/2]: of positions 0 … S-1 for a length, or of those given."""
        return (
            select_positions("RotaryEmbedding", self.cos, positions),
            select_positions("RotaryEmbedding", self.sin, positions),
        )

    def extra_repr(self) -> str:
        interleaved = ", interleaved=True" if self.interleaved else ""
        return f"{self.dim}, max_positions={self.max_positions}, base={self.base}{interleaved}"


class LearnedPositionEmbedding(nn.Embedding):
    """One trained vector for each position, as BERT and GPT-2 have; the parameter is ``weight``.

    Args:
        max_positions: number of positions.
        embed_dim: size of each vector.
    """

    def __init__(
        self,
        max_positions: int,
        embed_dim: int,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(max_positions, embed_dim, device=device, dtype=dtype)

    def forward(self, positions: int | Tensor) -> Tensor:
        """A length S → the vectors of 0 … S-1, [S, E]; integer positions [...] → [..., E]."""
        return select_positions("LearnedPositionEmbedding", self.weight, positions)


class SinusoidalPositionEmbedding(nn.Module):
    """Fixed waves as position vectors (Vaswani et al., "Attention Is All You Need", 2017, section
    3.5).

    Element 2i of position p is ``sin(p * base**(-2i/E))``, element 2i+1 the cosine of the same
    angle. Holds no parameter and adds nothing to the state dict.

    Args:
        max_positions: number of positions.
        embed_dim: size E of each vector; even.
        base: see above.
    """

    weight: Tensor

    def __init__(
        self,
        max_positions: int,
        embed_dim: int,
        *,
        base: float = 10000.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embed_dim % 2:
            raise ValueError(
                f"lanewise.nn.SinusoidalPositionEmbedding: embed_dim must be even, got {embed_dim}"
            )
        angles = position_angles(max_positions, inverse_frequencies(embed_dim, base, device))
        waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        self.register_buffer(
            "weight", waves.to(dtype or torch.get_default_dtype()), persistent=False
        )

    def forward(self, positions: int | Tensor) -> Tensor:
        """A length S → the vectors of 0 … S-1, [S, E]; integer positions [...] → [..., E]."""
        return select_positions("SinusoidalPositionEmbedding", self.weight, positions)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"


def inverse_frequencies(dim: int, base: float, device: Any = None) -> Tensor:
    """``base**(-2i/dim)`` for i < dim/2, float64."""
    return base ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)


def position_angles(count: int, inv_freq: Tensor, start: int = 0) -> Tensor:
    """[count, len(inv_freq)]: position, from ``start`` on, times frequency; float64 keeps the phase
    of far ones."""
    positions = torch.arange(start, start + count, dtype=torch.float64, device=inv_freq.device)
    return torch.outer(positions, inv_freq)


def select_positions(owner: str, table: Tensor, positions: int | Tensor) -> Tensor:
    """The rows of ``table`` for a length (a view) or for given positions (a copy)."""
    if isinstance(positions, Tensor):
        return nn.functional.embedding(positions, table)
    if positions > table.shape[0]:
        raise ValueError(
            f"lanewise.nn.{owner}: a sequence may have at most {table.shape[0]} positions, "
            f"got {positions}"
        )
    return table[:positions]
