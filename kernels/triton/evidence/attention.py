"""Every tile of attention's tables, each with all the options that it serves."""

from __future__ import annotations

import functools

import torch

from .. import attention
from .case import TYPES, Case, Promise, empty

PROMISES = {"attention_forward": Promise()}


def _forward(kind: str, dtype: torch.dtype, size: int, device: str) -> object:
    batch, heads, heads_kv, keys = 2, 32, 8, 4096
    queries = 1 if kind == "few" else keys
    bare = kind == "bare"
    return attention.attention(
        empty(batch, heads, queries, size, dtype=dtype, device=device),
        empty(batch, heads_kv, keys, size, dtype=dtype, device=device),
        empty(batch, heads_kv, keys, size, dtype=dtype, device=device),
        bias=None if bare else empty(batch, 1, queries, keys, dtype=dtype, device=device),
        sinks=empty(heads, dtype=torch.float32, device=device),
        alibi_slopes=None if bare else empty(batch, heads, dtype=torch.float32, device=device),
        causal=True,
        window_left=1000,
        softcap=0.0 if bare else 30.0,
    )


def cases() -> list[Case]:
    rows = [
        (kind, name, size)
        for kind in ("bare", "scored", "few")
        for name in ("bf16", "f32")
        for size in (64, 128, 256, 512)
    ]
    # float16 shares bfloat16's tiles; a head size of 80 fills none, and rows of 33 start anywhere.
    rows += [("bare", "f16", 128), ("scored", "bf16", 80), ("few", "f32", 33)]
    return [
        Case(
            f"attention {kind} {name} {size}",
            functools.partial(_forward, kind, TYPES[name], size),
            aligned=size % 16 == 0,
        )
        for kind, name, size in rows
    ]
