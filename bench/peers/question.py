"""What lanewise and its peers are asked: an op and its operands, as tensors of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


class Question:
    """Its fields begin with an operand, whose dtype is the question's."""

    @property
    def dtype(self) -> torch.dtype:
        """Of operands and answer."""
        first: Tensor = getattr(self, fields(self)[0].name)  # type: ignore[arg-type]
        return first.dtype


@dataclass(frozen=True, eq=False)
class Linear(Question):
    """activation(x @ weight.T + bias): x [M, K], weight [N, K], bias [N]."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    activation: str = "none"  # or "gelu", the exact one


@dataclass(frozen=True, eq=False)
class GatedLinear(Question):
    """silu(x @ gate.T) * (x @ up.T): x [M, K], gate and up [N, K]."""

    x: Tensor
    gate: Tensor
    up: Tensor


@dataclass(frozen=True, eq=False)
class Matmul(Question):
    """a @ b: [B, M, K] and [B, K, N]."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, eq=False)
class Attention(Question):
    """softmax(q @ k.T / sqrt(D)) @ v: q [B, H, Sq, D]; k and v [B, Hkv, Sk, D].

    A window counts the keys that a causal query sees, its own included; 0 for all. What is causal
    has as many queries as keys.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    causal: bool = False
    window: int = 0

    @property
    def grouped(self) -> bool:
        """Whether several heads of queries share one of keys."""
        return self.q.shape[1] != self.k.shape[1]


@dataclass(frozen=True, eq=False)
class LayerNorm(Question):
    """Over the rows of x [M, N], with weight and bias [N]."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    eps: float = 1e-5


@dataclass(frozen=True, eq=False)
class RMSNorm(Question):
    """Over the rows of x [M, N], with weight [N]."""

    x: Tensor
    weight: Tensor
    eps: float = 1e-6


@dataclass(frozen=True, eq=False)
class AddRMSNorm(Question):
    """RMSNorm of x + residual, [M, N] both, and the sum."""

    x: Tensor
    residual: Tensor
    weight: Tensor
    eps: float = 1e-6


@dataclass(frozen=True, eq=False)
class Rope(Question):
    """Rotates the pairs (i, i + D/2) of x [B, H, S, D] by angles, cos and sin [S, D/2] float32."""

    x: Tensor
    cos: Tensor
    sin: Tensor


def alone(outputs: Sequence[Any]) -> Any:
    """The one output of a graph that has one, as torch's ops return it; else all, in a tuple."""
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


class Unanswered(Exception):
    """A peer has no such op, or not for these dtypes and options: it is left out of the case."""
