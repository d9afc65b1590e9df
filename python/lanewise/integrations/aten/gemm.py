"""Matrix products: what F.linear, torch.matmul and their gradients come down to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lanewise.integrations.aten import worth
from lanewise.integrations.aten.override import ISA, SERVED_DTYPES, Override, call
from lanewise.integrations.aten.reason import DTYPE, EMPTY, SERVED, SHAPE
from lanewise.ops._library import ops

SCALED = "beta is not 0 or 1, or alpha is not 1"
SUMMAND = "summand is not a row or the output's shape in the operands' dtype"

_matmul, _linear = ops.matmul.default, ops.linear.default
_aten = torch.ops.aten


def _tiny_product(a: Tensor, b: Tensor) -> bool:
    try:
        return a.numel() * b.size(-1) < worth.LEAST_PRODUCT.get(a.dtype, 0)
    except IndexError:  # no dimension, which is torch's to refuse
        return False


def _tiny_sum(c: Tensor, a: Tensor, b: Tensor) -> bool:
    return _tiny_product(a, b)


def _decline_product(a: Tensor, b: Tensor, rank: int) -> str:
    dtype = a.dtype
    if dtype not in SERVED_DTYPES or b.dtype is not dtype:
        return DTYPE
    left, right = a.shape, b.shape
    if len(left) != rank or len(right) != rank or left[-1] != right[-2] or left[:-2] != right[:-2]:
        return SHAPE
    if a.numel() == 0 or b.numel() == 0:
        return EMPTY
    batch = left[0] if rank == 3 else 1
    m, k, n = left[-2], left[-1], right[-1]
    return worth.product(ISA, torch.get_num_threads(), dtype, batch, m, n, k, _layout(a, b))


def _layout(a: Tensor, b: Tensor) -> str:
    if a.stride(-1) != 1:
        return "other"
    return "linear" if b.stride(-2) == 1 else "plain" if b.stride(-1) == 1 else "other"


def _decline_sum(c: Tensor, a: Tensor, b: Tensor, rank: int, beta: Any, alpha: Any) -> str:
    reason = _decline_product(a, b, rank)
    if reason:
        return reason
    if alpha != 1 or beta not in (0, 1):
        return SCALED
    if c.dtype is not a.dtype:
        return SUMMAND
    row = rank == 2 and c.dim() == 1 and c.shape[0] == b.shape[-1]
    if not row and c.shape != (*a.shape[:-1], b.shape[-1]):
        return SUMMAND
    return SERVED if c.stride(-1) == 1 or c.shape[-1] == 1 else SUMMAND


def _decline_mm(a: Tensor, b: Tensor) -> str:
    return _decline_product(a, b, 2)


def _decline_bmm(a: Tensor, b: Tensor) -> str:
    return _decline_product(a, b, 3)


def _decline_addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> str:
    return _decline_sum(c, a, b, 2, beta, alpha)


def _decline_baddbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> str:
    reason = _decline_sum(c, a, b, 3, beta, alpha)
    if beta and not reason:
        return worth.product_with_summand(a.dtype, a.shape[-2], b.shape[-1], a.shape[-1])
    return reason


def _product(a: Tensor, b: Tensor) -> Tensor:
    return call(_matmul, a, b)


def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    if not beta:
        return call(_matmul, a, b)
    bias, residual = (c, None) if c.dim() == 1 else (None, c)
    return call(_linear, a, b.t(), bias, residual)


def _baddbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    if not beta:
        return call(_matmul, a, b)
    # One by one, so that each sum is rounded once.
    return torch.stack([_addmm(*matrices) for matrices in zip(c, a, b, strict=True)])


# torch's kernel where it is the faster one, through the overload that was not overridden.


def _heavy_mm(a: Tensor, b: Tensor) -> Tensor:
    return call(_aten.mm.out, a, b, out=a.new_empty(0))


def _heavy_bmm(a: Tensor, b: Tensor) -> Tensor:
    return call(_aten.bmm.out, a, b, out=a.new_empty(0))


def _heavy_addmm(c: Tensor, a: Tensor, b: Tensor, **scales: Any) -> Tensor:
    return call(_aten.addmm.out, c, a, b, **scales, out=a.new_empty(0))


def _heavy_baddbmm(c: Tensor, a: Tensor, b: Tensor, **scales: Any) -> Tensor:
    return call(_aten.baddbmm.out, c, a, b, **scales, out=a.new_empty(0))


def _override(name: str, *functions: Callable[..., Any]) -> tuple[Override, ...]:
    return (Override(name, getattr(_aten, name).default, "CPU", *functions),)


OVERRIDES = {
    "mm": _override("mm", _tiny_product, _decline_mm, _product, _heavy_mm),
    "addmm": _override("addmm", _tiny_sum, _decline_addmm, _addmm, _heavy_addmm),
    "bmm": _override("bmm", _tiny_product, _decline_bmm, _product, _heavy_bmm),
    "baddbmm": _override("baddbmm", _tiny_sum, _decline_baddbmm, _baddbmm, _heavy_baddbmm),
}
