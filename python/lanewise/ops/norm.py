"""Root mean square and layer norm, alone or fused with the addition of a residual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lanewise.ops._library import (
    ops,
    register_autocast,
    register_autograd,
    register_fake,
    register_no_gradient,
)


def rms_norm(
    x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6, weight_offset: float = 0.0
) -> Tensor:
    """Divides each row by its root mean square: ``x / √(mean(x²) + eps) · (weight + offset)``.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019. Statistics are float32.

    Args:
        x: ``[..., N]``, float32, bfloat16 or float16; any strides with the last 1.
        weight: ``[N]``, of x's dtype or float32; None is one, to which no offset is added.
        eps: what is added to the mean square, at least 0.
        weight_offset: what is added to the weight: Gemma stores it less 1.

    Returns:
        A tensor of x's shape and dtype, under autocast too. Differentiable in x and weight.

    Raises:
        RuntimeError: on a wrong device, dtype, shape, stride or number.
    """
    return ops.rms_norm(x, weight, eps=eps, weight_offset=weight_offset)


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """Centres and scales each row: ``(x − mean) / √(variance + eps) · weight + bias``.

    Ba, Kiros and Hinton, "Layer Normalization", 2016. The variance is the biased one. Statistics
    are float32, from two passes over a row, so a mean far from zero costs no accuracy.

    Args:
        x: ``[..., N]``, float32, bfloat16 or float16; any strides with the last 1.
        weight, bias: ``[N]``, of x's dtype or float32; None is one, or zero.
        eps: what is added to the variance, at least 0.

    Returns:
        A tensor of x's shape and dtype, under autocast too. Differentiable in x, weight and bias.

    Raises:
        RuntimeError: on a wrong device, dtype, shape, stride or number.
    """
    return ops.layer_norm(x, weight, bias, eps=eps)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The root mean square norm of ``x + residual``, and that sum.

    Args:
        x, residual: ``[..., N]``, the same shape and dtype: float32, bfloat16 or float16.
        weight, eps, weight_offset: as in `rms_norm`.

    Returns:
        ``(y, sum)`` of x's shape and dtype. The sum is rounded once, to be the next residual; y is
        the norm of the unrounded sum. Differentiable in x, residual and weight.

    Raises:
        RuntimeError: on a wrong device, dtype, shape, stride or number.
    """
    return ops.add_rms_norm(x, residual, weight, eps=eps, weight_offset=weight_offset)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """The layer norm of ``x + residual``, and that sum.

    Args:
        x, residual: ``[..., N]``, the same shape and dtype: float32, bfloat16 or float16.
        weight, bias, eps: as in `layer_norm`.

    Returns:
        ``(y, sum)`` of x's shape and dtype. The sum is rounded once, to be the next residual; y is
        the norm of the unrounded sum. Differentiable in x, residual, weight and bias.

    Raises:
        RuntimeError: on a wrong device, dtype, shape, stride or number.
    """
    return ops.add_layer_norm(x, residual, weight, bias, eps=eps)


@register_fake("rms_norm")
@register_fake("layer_norm")
def _(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty(x.shape)


@register_fake("add_rms_norm")
@register_fake("add_layer_norm")
def _(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _fake_gradients(x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0) if weight is None else weight.new_empty(x.shape[-1])


@register_fake("rms_norm_backward")
def _(
    grad: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    *,
    eps: float,
    weight_offset: float,
) -> tuple[Tensor, Tensor]:
    return _fake_gradients(x, weight)


@register_fake("layer_norm_backward")
def _(
    grad: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    *,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_bias = x.new_empty(x.shape[-1], dtype=torch.float32)
    return *_fake_gradients(x, weight), grad_bias


# The inputs of the four ops differ only in what they lack; the gradients of those present are
# returned in their order.


def _setup_context(ctx: Any, inputs: tuple, keyword_only_inputs: dict, output: Any) -> None:
    ctx.save_for_backward(*inputs)
    ctx.options = keyword_only_inputs


def _bias_gradient(grad: Tensor, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else grad.to(bias.dtype)


def _weight_gradient(grad: Tensor, weight: Tensor | None) -> Tensor | None:
    return None if weight is None else grad


def _rms_norm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grad_x, grad_weight = ops.rms_norm_backward(
        grad.contiguous(), None, x, None, weight, **ctx.options
    )
    return grad_x, _weight_gradient(grad_weight, weight)


def _add_rms_norm_backward(ctx: Any, grad: Tensor, grad_sum: Tensor) -> tuple[Tensor | None, ...]:
    x, residual, weight = ctx.saved_tensors
    grad_x, grad_weight = ops.rms_norm_backward(
        grad.contiguous(), grad_sum.contiguous(), x, residual, weight, **ctx.options
    )
    return grad_x, grad_x, _weight_gradient(grad_weight, weight)


def _layer_norm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = ops.layer_norm_backward(
        grad.contiguous(), None, x, None, weight, **ctx.options
    )
    return grad_x, _weight_gradient(grad_weight, weight), _bias_gradient(grad_bias, bias)


def _add_layer_norm_backward(ctx: Any, grad: Tensor, grad_sum: Tensor) -> tuple[Tensor | None, ...]:
    x, residual, weight, bias = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = ops.layer_norm_backward(
        grad.contiguous(), grad_sum.contiguous(), x, residual, weight, **ctx.options
    )
    return (
        grad_x,
        grad_x,
        _weight_gradient(grad_weight, weight),
        _bias_gradient(grad_bias, bias),
    )


register_autograd("rms_norm", _rms_norm_backward, _setup_context)
register_autograd("layer_norm", _layer_norm_backward, _setup_context)
register_autograd("add_rms_norm", _add_rms_norm_backward, _setup_context)
register_autograd("add_layer_norm", _add_layer_norm_backward, _setup_context)
register_no_gradient("rms_norm_backward")
register_no_gradient("layer_norm_backward")

# A bfloat16 branch joins a float32 residual stream, as x + residual would.
register_autocast("add_rms_norm", ("x", "residual"), widest=True)
register_autocast("add_layer_norm", ("x", "residual"), widest=True)
