"""What the launchers of norms check of their arguments, in the words of csrc/norm."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import check


def check_norm(
    op: str,
    x: Tensor,
    like_x: dict[str, Tensor | None],
    columns: dict[str, Tensor | None],
    eps: float,
    weight_offset: float,
) -> None:
    """x [..., N]; `like_x` are tensors of its shape and dtype, `columns` of shape [N]."""
    check.require_floating(op, "x", x)
    check.require(x.dim() >= 1, op, "x must have at least one dimension, got shape []")
    check.require_unit_stride(op, "x", x)
    for name, t in like_x.items():
        if t is not None:
            _check_like_x(op, name, t, x)
    for name, t in columns.items():
        if t is not None:
            check_columns(op, name, t, x)
    check.require_finite(op, "eps", eps)
    check.require(eps >= 0, op, f"eps must not be negative, got {eps:g}")
    check.require_finite(op, "weight_offset", weight_offset)


def _check_like_x(op: str, name: str, t: Tensor, x: Tensor) -> None:
    check.require_device(op, name, t, x.device)
    check.require_dtype(op, name, t, x.dtype)
    check.require(
        t.shape == x.shape,
        op,
        f"{name} must have x's shape {list(x.shape)}, got {list(t.shape)}",
    )
    check.require_unit_stride(op, name, t)


def check_columns(op: str, name: str, t: Tensor, x: Tensor) -> None:
    check.require_device(op, name, t, x.device)
    check.require(
        t.dtype in (torch.float32, x.dtype),
        op,
        f"{name} must be float32 or x's {check.name_of(x.dtype)}, got {check.name_of(t.dtype)}",
    )
    check.require(
        t.dim() == 1 and t.size(0) == x.size(-1),
        op,
        f"{name} must have shape [{x.size(-1)}] like x's last dimension, got {list(t.shape)}",
    )
    check.require_unit_stride(op, name, t)
