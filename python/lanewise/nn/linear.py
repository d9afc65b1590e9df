"""A linear layer with its activation and a residual fused into the matrix product."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanewise import ops
from lanewise.nn.packing import ModuleT, Packing, holds_weight

# The same functions as in the ops' epilogue, for modules that have no such epilogue.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}


def check_activation(owner: str, activation: str) -> str:
    """Returns ``activation`` if it is known, else raises ValueError on behalf of ``owner``."""
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(
            f"lanewise.nn.{owner}: activation must be one of {known}, got {activation!r}"
        )
    return activation


class Linear(Packing, nn.Linear):
    """``activation(x @ weight.T + bias) + residual``: an ``nn.Linear`` on `lanewise.linear`.

    Parameters and state dict are those of ``nn.Linear``; float32, bfloat16 and float16. `pack`
    keeps a copy of the weight laid out for this CPU, which inference then uses: see `Packing`.

    An adapter (LoRA) around this layer adds its part after ``activation``. A model meant for
    adapters leaves ``activation`` at "none" and applies the function outside, as `lanewise.nn.MLP`
    does.

    Args:
        in_features: size of each input row.
        out_features: size of each output row.
        bias: whether there is a bias.
        activation: none, relu, gelu (exact), gelu_tanh, silu or tanh.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = check_activation("Linear", activation)
        self.unpack()

    def _owners(self) -> tuple[nn.Linear, ...]:
        return (self,) if holds_weight(self) else ()

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, activation: str | None = None
    ) -> Tensor:
        """input [..., in_features], residual [..., out_features] → [..., out_features].

        ``activation`` replaces the layer's own for this call.
        """
        activation = self.activation if activation is None else activation
        packed = self.usable_pack(input, residual, self.bias)
        if packed is not None:
            return ops.linear_packed(input, packed, self.bias, residual, activation=activation)
        return ops.linear(input, self.weight, self.bias, residual, activation=activation)

    def extra_repr(self) -> str:
        activation = "" if self.activation == "none" else f", activation={self.activation}"
        packed = "" if self.packed_weight is None else ", packed"
        return super().extra_repr() + activation + packed


def is_watched(module: nn.Module) -> bool:
    """Whether somebody's hook, or a ``forward`` of the instance's own, must see calls of it."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_plain(module: nn.Module | None, cls: type[ModuleT]) -> TypeGuard[ModuleT]:
    """Whether a call of ``module`` runs the ``forward`` of ``cls`` and nothing else: no hook, and
    no ``forward`` of a subclass."""
    return (
        isinstance(module, cls) and type(module).forward is cls.forward and not is_watched(module)
    )


def fuses(*layers: nn.Module) -> bool:
    """Whether all ``layers`` are our `Linear`, with no adapter around and nobody to be served."""
    return all(is_plain(layer, Linear) for layer in layers)


def project(
    layer: nn.Module, x: Tensor, residual: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """``activation(layer(x)) + residual``, in one op where ``layer`` is a plain `Linear`."""
    if fuses(layer):
        return layer(x, residual, activation=activation)
    y = ACTIVATIONS[activation](layer(x))
    return y if residual is None else y + residual
