"""F.rms_norm and F.layer_norm.

On the CPU torch composes rms_norm of a dozen passes over memory, above autograd, and the kernels of
layer_norm hand over statistics that lanewise's do not keep. So both are replaced above autograd,
with gradients of their own, whose gradients are torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lanewise.integrations.aten import worth
from lanewise.integrations.aten.override import ISA, SERVED_DTYPES, Override, call
from lanewise.integrations.aten.reason import DTYPE, EMPTY, SERVED, SHAPE, STRIDE
from lanewise.ops._library import ops

WRAPPED = "under a transform, a mode or a subclass of Tensor"
SEVERAL_DIMENSIONS = "normalizes several dimensions"
EPS = "eps is negative or not finite"

_aten = torch.ops.aten
_PLAIN = (Tensor, torch.nn.Parameter)
# What torch adds where rms_norm's eps is None: it computes in float32 at each of these dtypes.
_EPS = torch.finfo(torch.float32).eps


def _decline_rows(
    x: Tensor, shape: Sequence[int], parameters: Sequence[Tensor | None], eps: float
) -> str:
    dtype = x.dtype
    if dtype not in SERVED_DTYPES:
        return DTYPE
    if len(shape) != 1:
        return SEVERAL_DIMENSIONS
    if x.dim() == 0 or x.shape[-1] != shape[0]:
        return SHAPE
    for p in parameters:
        if p is None:
            continue
        if p.dtype is not dtype:
            return DTYPE
        if p.shape != x.shape[-1:]:
            return SHAPE
        if p.stride(0) != 1 and p.shape[0] != 1:
            return STRIDE
    if x.numel() == 0:
        return EMPTY
    if x.stride(-1) != 1 and x.shape[-1] != 1:
        return STRIDE
    if not 0 <= eps <= 1e30:
        return EPS
    return SERVED


def _wrapped(*tensors: Tensor | None) -> bool:
    """Above autograd, tensors may stand for others, whose owners expect torch's ops."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or any(
            t is not None and (type(t) not in _PLAIN or torch._is_functional_tensor(t))
            for t in tensors
        )
    )


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


Gradients = tuple[Tensor | None, ...]


def _differentiable_gradients(
    compose: Callable[..., Tensor], tensors: Gradients, needs: Sequence[bool], grad: Tensor
) -> Gradients:
    """The gradients of torch's own `compose(*tensors)`, which have gradients themselves.

    They are taken with respect to aliases: one operand may be computed from another, or be it, and
    what reaches it by that way is not this function's to count.
    """
    aliases = [None if t is None else t.view_as(t) for t in tensors]
    needed = [t for t, wanted in zip(aliases, needs, strict=True) if wanted and t is not None]
    grads = iter(torch.autograd.grad(compose(*aliases), needed, grad, create_graph=True))
    return tuple(next(grads) if wanted else None for wanted in needs)


# --- rms_norm ------------------------------------------------------------------------------------


def _tiny_rms(*_: Any) -> bool:
    return False


def _decline_rms(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> str:
    if _wrapped(x, weight):
        return WRAPPED
    reason = _decline_rows(x, shape, (weight,), _EPS if eps is None else eps)
    return reason or worth.rms_norm(ISA, x.shape[-1])


def _rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    eps = _EPS if eps is None else eps
    if _wants_gradient(x, weight):
        return _RmsNorm.apply(x, weight, eps)
    return call(ops.rms_norm.default, x, weight, eps=eps)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return call(ops.rms_norm.default, x, weight, eps=eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:  # type: ignore[override]
        x, weight = ctx.saved_tensors

        def compose(x: Tensor, weight: Tensor | None) -> Tensor:
            wide = x.float()
            y = wide * (wide.square().mean(-1, keepdim=True) + ctx.eps).rsqrt()
            return (y if weight is None else y * weight).type_as(x)

        if torch.is_grad_enabled():
            needs = ctx.needs_input_grad[:2]
            return *_differentiable_gradients(compose, (x, weight), needs, grad), None
        grad_x, grad_weight = call(
            ops.rms_norm_backward.default,
            *(grad.contiguous(), None, x, None, weight),
            eps=ctx.eps,
            weight_offset=0.0,
        )
        return grad_x, None if weight is None else grad_weight, None


# --- layer_norm ----------------------------------------------------------------------------------


def _tiny_layer(x: Tensor, *_: Any) -> bool:
    return x.numel() < worth.LEAST_LAYER_NORM


def _decline_layer(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> str:
    reason = _decline_rows(x, shape, (weight, bias), eps)
    if reason:
        return reason
    rows, cols = x.shape[:-1].numel(), x.shape[-1]
    reason = worth.layer_norm(ISA, x.dtype, rows, cols, _wants_gradient(x, weight, bias))
    return reason or (WRAPPED if _wrapped(x, weight, bias) else SERVED)


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    if _wants_gradient(x, weight, bias):
        return _LayerNorm.apply(x, weight, bias, eps)
    return call(ops.layer_norm.default, x, weight, bias, eps=eps)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        return call(ops.layer_norm.default, x, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:  # type: ignore[override]
        x, weight, bias = ctx.saved_tensors

        def compose(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            return torch.native_layer_norm(x, x.shape[-1:], weight, bias, ctx.eps)[0]

        if torch.is_grad_enabled():
            needs = ctx.needs_input_grad[:3]
            return *_differentiable_gradients(compose, (x, weight, bias), needs, grad), None
        grad_x, grad_weight, grad_bias = call(
            ops.layer_norm_backward.default,
            *(grad.contiguous(), None, x, None, weight),
            eps=ctx.eps,
        )
        return (
            grad_x,
            None if weight is None else grad_weight,
            None if bias is None else grad_bias.to(bias.dtype),
            None,
        )


# Not under the key CPU too, where calls in inference mode arrive: torch.export would take the ops
# for kernels of a backend then, and leave them in a graph that it is asked to decompose.
OVERRIDES = {
    "layer_norm": (
        Override(
            "layer_norm",
            _aten.layer_norm.default,
            "AutogradCPU",
            _tiny_layer,
            _decline_layer,
            _layer_norm,
        ),
    ),
    "rms_norm": (
        Override(
            "rms_norm",
            _aten.rms_norm.default,
            "AutogradCPU",
            _tiny_rms,
            _decline_rms,
            _rms_norm,
        ),
    ),
}
