"""Every tile of the rotation's table, in both pairings, whole heads and parts of them."""

from __future__ import annotations

import functools

import torch

from .. import rope
from .case import TYPES, Case, Promise, empty

PROMISES = {"rotate": Promise(products=False, copies=False)}


def _rope(
    dtype: torch.dtype, size: int, rotated: int, interleaved: bool, inverse: bool, device: str
) -> None:
    batch, heads, length = 2, 32, 4096
    x = empty(batch, length, heads, size, dtype=dtype, device=device).transpose(1, 2)
    angles = empty(batch, length, rotated // 2, dtype=torch.float32, device=device)
    launch = rope.rope_backward if inverse else rope.rope
    launch(x, angles, angles, interleaved=interleaved)


def cases() -> list[Case]:
    rows = [
        (name, size, size, interleaved, False)
        for name in ("bf16", "f32")
        for size in (64, 128, 256)
        for interleaved in (False, True)
    ]
    # Of the gradient only the sine's sign is new; part of a head leaves a rest to copy.
    rows += [("bf16", 128, 128, False, True), ("f16", 128, 32, False, False)]
    return [
        Case(
            f"rope {name} {size}"
            + f" of which {rotated}" * (rotated < size)
            + " interleaved" * interleaved
            + " backward" * inverse,
            functools.partial(_rope, TYPES[name], size, rotated, interleaved, inverse),
        )
        for name, size, rotated, interleaved, inverse in rows
    ]
