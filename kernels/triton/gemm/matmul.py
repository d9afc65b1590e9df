"""The matrix product of two tensors, as torch.matmul gives it."""

from __future__ import annotations

from torch import Tensor

from .. import check
from .product import product


def _check(a: Tensor, b: Tensor) -> None:
    op = "matmul"
    check.require_device(op, "b", b, a.device)
    check.require_floating(op, "a", a)
    check.require_dtype(op, "b", b, a.dtype)
    for name, x in (("a", a), ("b", b)):
        check.require(
            x.dim() >= 2,
            op,
            f"{name} must have at least 2 dimensions, got shape {list(x.shape)}",
        )
    check.require_extents(op, "a", a)
    check.require_extents(op, "b", b)
    check.require(
        b.size(-2) == a.size(-1),
        op,
        f"b has {b.size(-2)} rows, which is not a's {a.size(-1)} columns",
    )


def _broadcast_batch(a: Tensor, b: Tensor) -> list[int]:
    rank = max(a.dim(), b.dim()) - 2
    sizes_a, sizes_b = ([1] * (rank + 2 - t.dim()) + list(t.shape[:-2]) for t in (a, b))
    check.require(
        all(x == y or 1 in (x, y) for x, y in zip(sizes_a, sizes_b, strict=True)),
        "matmul",
        f"b's batch shape {list(b.shape)} does not broadcast with a's {list(a.shape)}",
    )
    return [y if x == 1 else x for x, y in zip(sizes_a, sizes_b, strict=True)]


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, accumulated in float32.

    Args:
        a: [..., M, K], float32, bfloat16 or float16, any strides.
        b: [..., K, N], a's dtype, any strides; leading dimensions broadcast.

    Returns:
        [..., M, N] in a's dtype; contiguous.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, rank or shape.
    """
    _check(a, b)
    out = a.new_empty(*_broadcast_batch(a, b), a.size(-2), b.size(-1))
    product(a, b, out)
    return out
