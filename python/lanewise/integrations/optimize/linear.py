"""Linear layers: torch's ``nn.Linear`` and transformers' ``Conv1D``, which stores its weight
transposed."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lanewise import ops
from lanewise.integrations.optimize.serving import autocasts, served, without_autograd
from lanewise.integrations.optimize.swap import Replacement, plain, unobserved
from lanewise.nn.linear import ACTIVATIONS
from lanewise.nn.packing import Packing, holds_weight


class PackedReplacement(Replacement, Packing):
    """A replacement that may keep a packed weight.

    An adapter of peft merges itself without a trace, unless it is watched. It can be watched from
    the moment that peft is there; a copy packed before is compared with its weights once.
    """

    _watched = False

    def prepare(self) -> None:
        self.unpack()

    def withdraw(self) -> None:
        del self.packed_weight
        self._non_persistent_buffers_set.discard("packed_weight")
        for name in ("_packed_from", "_watched"):
            self.__dict__.pop(name, None)

    def pack(self, *, release: bool = False) -> Self:
        self._watched = _watch_adapters()
        return super().pack(release=release)

    def usable_pack(self, *inputs: Tensor | None) -> Tensor | None:
        packed = self.packed_weight
        if not (packed is None or self._watched or torch.compiler.is_compiling()):
            self._watched = _watch_adapters()
            if self._watched and not self._released and self._outdated(packed):
                self.unpack()
        return super().usable_pack(*inputs)

    def _outdated(self, packed: Tensor) -> bool:
        if not self._owners():
            return True
        with torch.no_grad():
            return not torch.equal(packed, ops.pack_weight(self._matrix()))

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.packed_weight is None else ", packed")


class Linear(PackedReplacement):
    """``activation(x @ weight.T + bias) + residual`` on `lanewise.linear`."""

    weight: Tensor
    bias: Tensor | None

    def _owners(self) -> tuple[nn.Linear, ...]:
        return (self,) if holds_weight(self) else ()  # type: ignore[return-value]

    def _matrix(self) -> Tensor:
        return self.weight

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, activation: str = "none"
    ) -> Tensor:
        """input [..., in], residual [..., out] → [..., out]."""
        packed = self.packed_weight
        if packed is not None:
            packed = self.usable_pack(input, residual, self.bias)
        if not self._serves(input, packed):
            y = ACTIVATIONS[activation](super().forward(input))
            return y if residual is None else y + residual
        with without_autograd():
            if packed is not None:
                return ops.linear_packed(input, packed, self.bias, residual, activation=activation)
            return ops.linear(input, self._matrix(), self.bias, residual, activation=activation)

    def _serves(self, input: Tensor, packed: Tensor | None) -> bool:
        weight = self.weight
        if packed is not None:  # the weight itself may have been released
            return served(input) and weight.dtype is input.dtype
        return served(input, weight) or (autocasts() and served(input) and served(weight))


class Conv1D(Linear):
    """The same for a weight that is stored as [in, out]."""

    def _matrix(self) -> Tensor:
        return self.weight.t()


def project(
    layer: nn.Module, x: Tensor, residual: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """``activation(layer(x)) + residual``, in one op where ``layer`` is one of ours and alone."""
    if isinstance(layer, Linear) and plain(layer):
        return layer(x, residual, activation=activation)
    y = ACTIVATIONS[activation](layer(x))
    return y if residual is None else y + residual


def _watch_adapters() -> bool:
    """Watches peft's adapters if peft has been imported, and says whether it has."""
    if sys.modules.get("peft") is None:
        return False
    from lanewise.integrations import peft

    peft.watch()
    return True


def skipped(dropout: nn.Module) -> bool:
    """Whether ``dropout`` lets everything pass and nobody watches."""
    return (
        type(dropout) is nn.Dropout
        and (not dropout.training or dropout.p == 0.0)
        and unobserved(dropout)
    )
