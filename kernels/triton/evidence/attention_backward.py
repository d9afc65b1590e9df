"""Every tile of the tables of attention's gradients, each with all the options that it serves."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .. import attention
from .case import TYPES, Case, Promise, empty

# A program that owns keys makes the products with keys as rows. Loops over slices of a head, for
# whole tiles and for edges, have many barriers. Statistics of rows, 4 bytes each, are copied one by
# one beside the tiles of 16 bytes a thread; sums read nothing else.
PROMISES = {
    "attention_backward_keys": Promise(rows=("N",), barriers=192),
    "attention_backward_queries": Promise(barriers=192),
    "attention_backward_bias": Promise(),
    "attention_backward_rows": Promise(products=False, copies=False),
    "attention_backward_sinks": Promise(products=False, copies=False, vectors=False),
    "attention_backward_sums": Promise(products=False, copies=False, vectors=False),
}

BATCH, HEADS, HEADS_KV, TOKENS = 2, 32, 8, 4096


def _options(
    kind: str, dtype: torch.dtype, size: int, bias: tuple[int, ...], device: str
) -> dict[str, Any]:
    bare = kind == "bare"
    return {
        "bias": None if bare else empty(*bias, dtype=dtype, device=device),
        "sinks": empty(HEADS, dtype=torch.float32, device=device),
        "alibi_slopes": None if bare else empty(BATCH, HEADS, dtype=torch.float32, device=device),
        "causal": True,
        "window_left": 1000,
        "softcap": 0.0 if bare else 30.0,
        "needs_bias": not bare and size == 128,  # whose tiles serve heads of any size
        "needs_sinks": True,
    }


def _padded(kind: str, dtype: torch.dtype, size: int, bias: tuple[int, ...], device: str) -> object:
    def operand(heads: int) -> Tensor:
        return empty(BATCH, heads, TOKENS, size, dtype=dtype, device=device)

    q, k, v = operand(HEADS), operand(HEADS_KV), operand(HEADS_KV)
    lse = empty(BATCH, HEADS, TOKENS, dtype=torch.float32, device=device)
    options = _options(kind, dtype, size, bias, device)
    return attention.attention_backward(operand(HEADS), lse, q, k, v, out=q, lse=lse, **options)


def _packed(kind: str, dtype: torch.dtype, size: int, device: str) -> object:
    def operand(heads: int) -> Tensor:
        return empty(BATCH * TOKENS, heads, size, dtype=dtype, device=device)

    q, k, v = operand(HEADS), operand(HEADS_KV), operand(HEADS_KV)
    lse = empty(HEADS, BATCH * TOKENS, dtype=torch.float32, device=device)
    starts = torch.arange(BATCH + 1, dtype=torch.int32, device=device) * TOKENS
    options = _options(kind, dtype, size, (BATCH, 1, TOKENS, TOKENS), device)
    return attention.attention_varlen_backward(
        operand(HEADS), lse, q, k, v, starts, starts,
        out=q, lse=lse, max_seqlen_q=TOKENS, max_seqlen_k=TOKENS, **options,
    )  # fmt: skip


def cases() -> list[Case]:
    rows = [("bare", "bf16", size) for size in (64, 128, 256, 512)]
    rows += [("scored", name, size) for name in ("bf16", "f32") for size in (64, 128, 256, 512)]
    # float16 shares bfloat16's tiles; a head size of 80 fills none.
    rows += [("bare", "f16", 128), ("bare", "bf16", 80)]
    whole = (BATCH, 1, TOKENS, TOKENS)
    padded = [
        Case(
            f"attention backward {kind} {name} {size}",
            functools.partial(_padded, kind, TYPES[name], size, whole),
        )
        for kind, name, size in rows
    ]
    packed = [
        Case(
            f"attention varlen backward {kind} {name} 128",
            functools.partial(_packed, kind, TYPES[name], 128),
        )
        for kind, name in (("bare", "bf16"), ("scored", "bf16"), ("scored", "f32"))
    ]
    # A bias for all queries, or for all keys too, is summed by several programs.
    shared = [
        Case(
            f"attention backward of a bias {list(bias)}",
            functools.partial(_padded, "scored", torch.bfloat16, 128, bias),
        )
        for bias in ((BATCH, 1, 1, TOKENS), (HEADS, 1, 1))
    ]
    return padded + packed + shared
