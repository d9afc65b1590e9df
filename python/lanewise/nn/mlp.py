"""The feed-forward half of a transformer layer, plain or gated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lanewise import ops
from lanewise.nn.linear import ACTIVATIONS, Linear, check_activation, fuses, project


class MLP(nn.Module):
    """``down_proj(activation(up_proj(x)))``, or gated ``down_proj(activation(gate_proj(x)) *
    up_proj(x))``.

    The activation, the product and the residual are fused into the matrix products. There is no
    dropout.

    Args:
        embed_dim: size E of each input and output row.
        hidden_dim: size between the two.
        activation: none, relu, gelu (exact), gelu_tanh, silu or tanh.
        gated: adds gate_proj (Shazeer, "GLU Variants Improve Transformer", 2020; SwiGLU is silu,
            GeGLU gelu).
        bias: whether the layers have a bias.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        *,
        activation: str = "gelu",
        gated: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.activation = check_activation("MLP", activation)
        self.gate_proj = Linear(embed_dim, hidden_dim, bias, **factory) if gated else None
        self.up_proj = Linear(embed_dim, hidden_dim, bias, **factory)
        self.down_proj = Linear(hidden_dim, embed_dim, bias, **factory)

    def forward(self, x: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """x [..., E], residual [..., E] (added to the result) → [..., E]."""
        if self.gate_proj is None:
            hidden = project(self.up_proj, x, activation=self.activation)
        else:
            hidden = self._gated(x, self.gate_proj)
        return project(self.down_proj, hidden, residual)

    def _gated(self, x: Tensor, gate: Linear) -> Tensor:
        up = self.up_proj
        if not fuses(gate, up):
            return ACTIVATIONS[self.activation](gate(x)) * up(x)
        packed_gate, packed_up = gate.usable_pack(x, gate.bias), up.usable_pack(x, up.bias)
        if packed_gate is not None and packed_up is not None:
            return ops.gated_linear_packed(
                x, packed_gate, packed_up, gate.bias, up.bias, activation=self.activation
            )
        return ops.gated_linear(
            x, gate.weight, up.weight, gate.bias, up.bias, activation=self.activation
        )

    def extra_repr(self) -> str:
        return f"activation={self.activation}"
