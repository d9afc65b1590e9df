"""Layer norm and RMS norm, alone or fused with the residual addition before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from lanewise import ops


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` on `lanewise.layer_norm`: same arguments, parameters and state dict."""

    @overload
    def forward(self, input: Tensor) -> Tensor: ...
    @overload
    def forward(self, input: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, input: Tensor, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """input [..., *normalized_shape] → the same shape and dtype.

        With ``residual``, of input's shape, returns ``(norm(input + residual), input + residual)``.
        """
        shape = input.shape
        rows = _rows("LayerNorm", "input", input, self.normalized_shape)
        weight, bias = _vector(self.weight), _vector(self.bias)
        if residual is None:
            return ops.layer_norm(rows, weight, bias, eps=self.eps).view(shape)
        added = _rows("LayerNorm", "residual", residual, self.normalized_shape)
        y, total = ops.add_layer_norm(rows, added, weight, bias, eps=self.eps)
        return y.view(shape), total.view(shape)


class RMSNorm(nn.RMSNorm):
    """``nn.RMSNorm`` on `lanewise.rms_norm`: same arguments, parameters and state dict.

    Args:
        normalized_shape: the trailing dimensions that are normalised together.
        eps: added to the mean square; None means float32's smallest step, as in torch.
        elementwise_affine: whether there is a weight.
        weight_offset: added to the weight. Gemma stores its weights around 0 and needs 1.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = 1e-6,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        weight_offset: float = 0.0,
    ) -> None:
        self.weight_offset = weight_offset
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)

    def reset_parameters(self) -> None:
        """Makes the layer scale by 1: the weight is filled with ``1 - weight_offset``."""
        if self.elementwise_affine:
            nn.init.constant_(self.weight, 1.0 - self.weight_offset)

    @overload
    def forward(self, input: Tensor) -> Tensor: ...
    @overload
    def forward(self, input: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, input: Tensor, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """input [..., *normalized_shape] → the same shape and dtype.

        With ``residual``, of input's shape, returns ``(norm(input + residual), input + residual)``.
        """
        shape = input.shape
        rows = _rows("RMSNorm", "input", input, self.normalized_shape)
        eps = torch.finfo(torch.float32).eps if self.eps is None else self.eps
        options = {"eps": eps, "weight_offset": self.weight_offset}
        weight = _vector(self.weight)
        if residual is None:
            return ops.rms_norm(rows, weight, **options).view(shape)
        added = _rows("RMSNorm", "residual", residual, self.normalized_shape)
        y, total = ops.add_rms_norm(rows, added, weight, **options)
        return y.view(shape), total.view(shape)

    def extra_repr(self) -> str:
        offset = f", weight_offset={self.weight_offset}" if self.weight_offset else ""
        return super().extra_repr() + offset


def _rows(owner: str, name: str, x: Tensor, normalized_shape: tuple[int, ...]) -> Tensor:
    """x with its normalised dimensions as one, which is what the ops take."""
    count = len(normalized_shape)
    if x.shape[-count:] != normalized_shape:
        raise RuntimeError(
            f"lanewise.nn.{owner}: {name} must end in the shape {list(normalized_shape)}, "
            f"got {list(x.shape)}"
        )
    return x if count == 1 else x.flatten(-count)


def _vector(parameter: Tensor | None) -> Tensor | None:
    return parameter if parameter is None or parameter.dim() == 1 else parameter.flatten()
