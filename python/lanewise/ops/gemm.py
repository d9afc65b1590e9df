"""Matrix products with fused epilogues: linear, gated linear, matmul, and their packed forms."""

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
    register_twin,
)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    activation: str = "none",
) -> Tensor:
    """``activation(x @ weight.T + bias) + residual`` in one pass over the output.

    Args:
        x: ``[..., in]``, float32, bfloat16 or float16, any strides.
        weight: ``[out, in]`` of x's dtype, any strides.
        bias: ``[out]`` of x's dtype or float32.
        residual: ``[..., out]`` of x's dtype or float32, last stride 1; added after the activation.
        activation: ``"none"``, ``"relu"``, ``"gelu"`` (exact, with erf), ``"gelu_tanh"``,
            ``"silu"`` or ``"tanh"``.

    Returns:
        ``[..., out]`` of the residual's dtype, or of x's without one. Sums run in float32 and are
        rounded once. Differentiable in every tensor; the backward recomputes the pre-activation
        rather than keeping it. Under autocast a float32 residual stays float32.

    Raises:
        RuntimeError: on a wrong device, dtype, rank, shape, stride or activation name.
    """
    return ops.linear(x, weight, bias, residual, activation=activation)


def gated_linear(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    *,
    activation: str = "silu",
) -> Tensor:
    """``activation(x @ gate.T + gate_bias) * (x @ up.T + up_bias)``: the first half of a gated MLP.

    With ``silu`` this is SwiGLU, with ``gelu`` GEGLU (Shazeer, GLU Variants Improve Transformer,
    2020).

    Args:
        x: ``[..., in]``, float32, bfloat16 or float16, any strides.
        gate, up: ``[out, in]`` of x's dtype, any strides.
        gate_bias, up_bias: ``[out]`` of x's dtype or float32.
        activation: as for :func:`linear`.

    Returns:
        ``[..., out]`` of x's dtype. Differentiable in every tensor. Where a gradient is wanted,
        both sums are kept for it, ``[..., out]`` in float32.

    Raises:
        RuntimeError: on a wrong device, dtype, rank, shape, stride or activation name.
    """
    return ops.gated_linear(x, gate, up, gate_bias, up_bias, activation=activation)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product, as :func:`torch.matmul` gives for operands of two dimensions or more.

    Args:
        a: ``[..., m, k]``, float32, bfloat16 or float16, any strides.
        b: ``[..., k, n]`` of a's dtype, any strides; leading dimensions broadcast.

    Returns:
        ``[..., m, n]`` of a's dtype. Sums run in float32 and are rounded once. Differentiable.

    Raises:
        RuntimeError: on a wrong device, dtype, rank or shape.
    """
    return ops.matmul(a, b)


def pack_weight(weight: Tensor) -> Tensor:
    """Lays a weight out for this CPU's register tiles, to be used many times; on a GPU, in rows
    that start 16 bytes apart.

    Args:
        weight: ``[out, in]``, float32, bfloat16 or float16, any strides.

    Returns:
        An opaque uint8 buffer ``[out, bytes]`` for :func:`linear_packed` and
        :func:`gated_linear_packed`, of the weight's own precision. It names its format, shape,
        dtype and instruction set, which every use checks: pack on the machine, and the device,
        that computes.

    Raises:
        RuntimeError: on a wrong device, dtype or rank.
    """
    return ops.pack_weight(weight)


def linear_packed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    activation: str = "none",
) -> Tensor:
    """:func:`linear` over a weight from :func:`pack_weight`. Not differentiable.

    Raises:
        RuntimeError: as :func:`linear`, and when the buffer is truncated, foreign, damaged or made
            for another instruction set, shape or dtype. A GPU is not waited for: there the size of
            the buffer is checked, and a foreign or damaged header makes the output NaN, or an error
            where ``LANEWISE_CHECK_INDEXES=1`` is set.
    """
    return ops.linear_packed(x, weight, bias, residual, activation=activation)


def gated_linear_packed(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    *,
    activation: str = "silu",
) -> Tensor:
    """:func:`gated_linear` over weights from :func:`pack_weight`. Not differentiable.

    Raises:
        RuntimeError: as :func:`gated_linear` and :func:`linear_packed`.
    """
    return ops.gated_linear_packed(x, gate, up, gate_bias, up_bias, activation=activation)


@register_fake("linear")
def _(x, weight, bias=None, residual=None, *, activation="none"):  # type: ignore[no-untyped-def]
    like = x if residual is None else residual
    return like.new_empty((*x.shape[:-1], weight.shape[0]))


@register_fake("linear_packed")
def _(x, weight, bias=None, residual=None, *, activation="none"):  # type: ignore[no-untyped-def]
    like = x if residual is None else residual
    return like.new_empty((*x.shape[:-1], weight.shape[0]))


@register_fake("gated_linear")
def _(x, gate, up, gate_bias=None, up_bias=None, *, activation="silu"):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], gate.shape[0]))


@register_fake("gated_linear_for_backward")
def _(x, gate, up, gate_bias=None, up_bias=None, *, activation="silu"):  # type: ignore[no-untyped-def]
    shape = (*x.shape[:-1], gate.shape[0])
    sums = [x.new_empty(shape, dtype=torch.float32) for _ in range(2)]
    return x.new_empty(shape), *sums


@register_fake("gated_linear_packed")
def _(x, gate, up, gate_bias=None, up_bias=None, *, activation="silu"):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], gate.shape[0]))


@register_fake("linear_backward")
def _(grad, x, weight, bias, *, activation, needs_x, needs_weight, needs_bias):  # type: ignore[no-untyped-def]
    nothing = x.new_empty((0,))
    like_bias = x if bias is None else bias
    return (
        x.new_empty(x.shape) if needs_x else nothing,
        weight.new_empty(weight.shape) if needs_weight else x.new_empty((0,)),
        like_bias.new_empty((weight.shape[0],)) if needs_bias else x.new_empty((0,)),
    )


@register_fake("gated_linear_backward")
def _(  # type: ignore[no-untyped-def]
    grad,
    x,
    gate,
    up,
    gate_sums,
    up_sums,
    gate_bias,
    up_bias,
    *,
    activation,
    needs_x,
    needs_weight,
    needs_bias,
):
    like = [x if bias is None else bias for bias in (gate_bias, up_bias)]
    return (
        x.new_empty(x.shape if needs_x else (0,)),
        gate.new_empty(gate.shape if needs_weight else (0,)),
        up.new_empty(up.shape if needs_weight else (0,)),
        like[0].new_empty((gate.shape[0],)) if needs_bias else x.new_empty((0,)),
        like[1].new_empty((up.shape[0],)) if needs_bias else x.new_empty((0,)),
    )


@register_fake("matmul")
def _(a: Tensor, b: Tensor) -> Tensor:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return a.new_empty((*batch, a.shape[-2], b.shape[-1]))


@register_fake("pack_weight")
def _(weight: Tensor) -> Tensor:
    # The row length depends on the instruction set, and no shape downstream depends on it.
    bytes_per_row = torch.library.get_ctx().new_dynamic_size()
    return weight.new_empty((weight.shape[0], bytes_per_row), dtype=torch.uint8)


def _linear_context(ctx: Any, inputs: tuple, keyword_only_inputs: dict, output: Tensor) -> None:
    x, weight, bias, _residual = inputs
    ctx.save_for_backward(x, weight, bias)
    ctx.activation = keyword_only_inputs["activation"]


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad
    grad_x, grad_weight, grad_bias = ops.linear_backward(
        _unit_stride(grad),
        x,
        weight,
        bias,
        activation=ctx.activation,
        needs_x=needs_x,
        needs_weight=needs_weight,
        needs_bias=needs_bias,
    )
    return (
        grad_x if needs_x else None,
        grad_weight if needs_weight else None,
        grad_bias if needs_bias else None,
        grad if needs_residual else None,
    )


def _gated_context(
    ctx: Any, inputs: tuple, keyword_only_inputs: dict, output: tuple[Tensor, ...]
) -> None:
    _out, *sums = output
    ctx.mark_non_differentiable(*sums)
    ctx.save_for_backward(*inputs[:3], *sums, *inputs[3:])
    ctx.activation = keyword_only_inputs["activation"]


def _gated_backward(ctx: Any, grad: Tensor, *_sums: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    grads = ops.gated_linear_backward(
        _unit_stride(grad),
        *ctx.saved_tensors,
        activation=ctx.activation,
        needs_x=needs[0],
        needs_weight=needs[1] or needs[2],
        needs_bias=needs[3] or needs[4],
    )
    return tuple(g if needed else None for g, needed in zip(grads, needs, strict=True))


def _matmul_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _matmul_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    needs_a, needs_b = ctx.needs_input_grad
    return (
        ops.matmul(grad, b.mT).sum_to_size(a.shape) if needs_a else None,
        ops.matmul(a.mT, grad).sum_to_size(b.shape) if needs_b else None,
    )


def _unit_stride(grad: Tensor) -> Tensor:
    """A gradient whose last stride is 1: autograd hands out expanded ones (of a sum, say)."""
    return grad if grad.stride(-1) == 1 else grad.contiguous()


register_autograd("linear", _linear_backward, _linear_context)
register_autograd("gated_linear_for_backward", _gated_backward, _gated_context)
register_twin("gated_linear", "gated_linear_for_backward")
register_autograd("matmul", _matmul_backward, _matmul_context)
for _op in ("linear_backward", "gated_linear_backward", "linear_packed", "gated_linear_packed"):
    register_no_gradient(_op)

register_autocast("linear", ("x", "weight", "bias"))
register_autocast("gated_linear", ("x", "gate", "up", "gate_bias", "up_bias"))
register_autocast("matmul", ("a", "b"))
