"""What the launchers of attention check of their arguments, and what those arguments mean."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import check

MAX_HEAD_SIZE = 512


def check_tensors(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
) -> None:
    op = "attention"
    for name, x in (("q", q), ("k", k), ("v", v)):
        check.require_device(op, name, x, q.device)
        check.require_floating(op, name, x)
        check.require(
            x.dtype == q.dtype,
            op,
            f"{name} must have q's dtype {check.name_of(q.dtype)}, got {check.name_of(x.dtype)}",
        )
        check.require_rank(op, name, x, 4)
        check.require_same(op, name, "batch size", x.size(0), "q", q.size(0))
        check.require(
            1 <= x.size(3) <= MAX_HEAD_SIZE,
            op,
            f"{name} must have a head size from 1 to {MAX_HEAD_SIZE}, got {x.size(3)}",
        )
        check.require_unit_stride(op, name, x)
    check.require_same(op, "k", "head size", k.size(3), "q", q.size(3))
    check.require(
        q.size(1) % k.size(1) == 0 if k.size(1) else q.size(1) == 0,
        op,
        f"k has {k.size(1)} heads, which does not divide q's {q.size(1)}",
    )
    check.require(
        v.size(1) == k.size(1), op, f"v has {v.size(1)} heads, which is not k's {k.size(1)}"
    )
    check.require(
        v.size(2) == k.size(2), op, f"v has {v.size(2)} tokens, which is not k's {k.size(2)}"
    )
    batch, heads = q.shape[:2]
    if bias is not None:
        check.require_device(op, "bias", bias, q.device)
        check.require(
            bias.dtype == torch.bool or bias.dtype in check.FLOATING,
            op,
            f"bias must be bool, float32, bfloat16 or float16, got {check.name_of(bias.dtype)}",
        )
        shape, scores = list(bias.shape), [batch, heads, q.size(2), k.size(2)]
        check.require(
            bias.dim() <= 4, op, f"bias must have at most 4 dimensions, got shape {shape}"
        )
        check.require(
            all(b in (1, s) for b, s in zip(shape[::-1], scores[::-1], strict=False)),
            op,
            f"bias of shape {shape} does not broadcast to {scores}",
        )
    if sinks is not None:
        check.require_device(op, "sinks", sinks, q.device)
        check.require_floating(op, "sinks", sinks)
        check.require(
            list(sinks.shape) == [heads],
            op,
            f"sinks must have shape {[heads]}, got {list(sinks.shape)}",
        )
    if alibi_slopes is not None:
        check.require_device(op, "alibi_slopes", alibi_slopes, q.device)
        check.require_dtype(op, "alibi_slopes", alibi_slopes, torch.float32)
        shape = list(alibi_slopes.shape)
        check.require(
            shape in ([heads], [batch, heads]),
            op,
            f"alibi_slopes must have shape {[heads]} or {[batch, heads]}, got {shape}",
        )


def check_options(window_left: int, window_right: int, softcap: float, scale: float) -> None:
    op = "attention"
    for name, window in (("window_left", window_left), ("window_right", window_right)):
        check.require(window >= -1, op, f"{name} must be at least -1, got {window}")
    check.require_finite(op, "softcap", softcap)
    check.require(softcap >= 0, op, f"softcap must not be negative, got {softcap:g}")
    check.require(
        softcap == 0 or 1e-30 <= softcap <= 1e30,
        op,
        f"softcap must be 0 or between 1e-30 and 1e30, got {softcap:g}",
    )
    check.require_finite(op, "scale", scale)
