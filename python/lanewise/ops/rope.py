"""Rotary position embedding."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lanewise.ops._library import ops, register_autograd, register_fake


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotates pairs of elements of each head by position-dependent angles.

    The first ``R`` elements of the last dimension are rotated, the others copied: the pair
    ``(a, b)`` becomes ``(a·cos − b·sin, b·cos + a·sin)`` (Su et al., RoFormer, 2021).

    Args:
        x: ``[B, H, S, D]``, float32, bfloat16 or float16; any strides with the last 1.
        cos, sin: ``[S, R/2]`` or ``[B, S, R/2]``, float32, one angle per pair, ``R ≤ D``.
        interleaved: pair elements ``(2i, 2i+1)`` (GPT-J) instead of ``(i, i + R/2)`` (Llama).

    Returns:
        A tensor of x's shape and dtype. Differentiable in ``x``; the tables are constants.

    Raises:
        RuntimeError: on a wrong device, dtype, rank, shape or stride.
    """
    return ops.rope(x, cos, sin, interleaved=interleaved)


@register_fake("rope")
def _(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    return x.new_empty(x.shape)


@register_fake("rope_backward")
def _(grad: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    return grad.new_empty(grad.shape)


def _setup_context(ctx: Any, inputs: tuple, keyword_only_inputs: dict, output: Tensor) -> None:
    _, cos, sin = inputs
    ctx.save_for_backward(cos, sin)
    ctx.interleaved = keyword_only_inputs["interleaved"]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    cos, sin = ctx.saved_tensors
    return ops.rope_backward(grad.contiguous(), cos, sin, interleaved=ctx.interleaved), None, None


register_autograd("rope", _backward, _setup_context)
