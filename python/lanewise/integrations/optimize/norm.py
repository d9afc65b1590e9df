"""Norms: torch's own two, and the RMS norms of transformers' models."""

from __future__ import annotations

from typing import overload

from torch import Tensor

from lanewise import nn as lanewise_nn
from lanewise import ops
from lanewise.integrations.optimize.serving import autocasts, served, without_autograd
from lanewise.integrations.optimize.swap import Replacement


class LayerNorm(Replacement, lanewise_nn.LayerNorm):
    """``nn.LayerNorm`` on `lanewise.layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        if _serves(input, self.weight):
            with without_autograd():
                return super().forward(input)
        return self.original.forward(self, input)


class TorchRMSNorm(Replacement, lanewise_nn.RMSNorm):
    """``nn.RMSNorm`` on `lanewise.rms_norm`."""

    weight_offset = 0.0

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        if _serves(input, self.weight):
            with without_autograd():
                return super().forward(input)
        return self.original.forward(self, input)


class RMSNorm(Replacement):
    """An RMS norm of transformers, alone or with the residual addition before it."""

    weight: Tensor
    weight_offset = 0.0

    @property
    def epsilon(self) -> float:
        return self.variance_epsilon  # type: ignore[return-value]

    @overload
    def forward(self, x: Tensor) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """x [..., E] → its norm; with ``residual`` (norm(x + residual), x + residual)."""
        if not _serves(x, self.weight):
            if residual is None:
                return super().forward(x)
            total = x + residual
            return super().forward(total), total
        options = {"eps": self.epsilon, "weight_offset": self.weight_offset}
        with without_autograd():
            if residual is None:
                return ops.rms_norm(x, self.weight, **options)
            return ops.add_rms_norm(x, residual, self.weight, **options)


class GemmaRMSNorm(RMSNorm):
    """Gemma's, whose weights are stored around 0."""

    weight_offset = 1.0

    @property
    def epsilon(self) -> float:
        return self.eps  # type: ignore[return-value]


def _serves(x: Tensor, weight: Tensor | None) -> bool:
    # Under autocast torch computes norms in float32 and may return that.
    return served(x, weight) and x.stride(-1) == 1 and not autocasts()
