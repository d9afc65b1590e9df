"""Every tile of attention's tables, each with all the options that it serves."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .. import attention
from .case import TYPES, Case, Promise, empty

PROMISES = {
    "attention_forward": Promise(copied=("N", "D")),
    "attention_merge": Promise(products=False, copies=False, resident=4),
    "paged_cache_write_rows": Promise(products=False, copies=False, resident=4),
}

BATCH, HEADS, HEADS_KV, KEYS = 2, 32, 8, 4096
# Few heads leave most of a GPU idle while decoding: their keys are split, and merged.
SPLIT_HEADS, SPLIT_HEADS_KV = 8, 2
UNSPLIT_KEYS = 64  # too few for any tile to be split
PAGES = (16, 256)  # tokens of a page: less than a tile of keys, and whole tiles


def _indexes(values: list[int], device: str) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def _starts(tokens: int, device: str) -> Tensor:
    """Of sequences of equal lengths."""
    return _indexes([b * tokens for b in range(BATCH + 1)], device)


def _forward(layout: str, kind: str, dtype: torch.dtype, size: int, device: str) -> object:
    """`layout`: padded, packed, or the tokens of a page; `kind`: what changes the scores and how
    many the queries are."""
    split, few, bare = "split" in kind, "few" in kind, "bare" in kind
    heads, heads_kv = (SPLIT_HEADS, SPLIT_HEADS_KV) if split else (HEADS, HEADS_KV)
    keys_of_each = UNSPLIT_KEYS if kind == "few" else KEYS
    queries = 1 if few else KEYS

    def of(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return empty(*shape, dtype=dtype, device=device)

    options: dict[str, Any] = {
        "bias": None if bare else of(BATCH, 1, queries, keys_of_each),
        "sinks": of(heads, dtype=torch.float32),
        "alibi_slopes": None if bare else of(BATCH, heads, dtype=torch.float32),
        "causal": True,
        "window_left": keys_of_each // 4,
        "softcap": 0.0 if bare else 30.0,
    }
    if layout == "padded":
        keys, values = (of(BATCH, heads_kv, keys_of_each, size) for _ in range(2))
        return attention.attention(of(BATCH, heads, queries, size), keys, values, **options)
    q, starts = of(BATCH * queries, heads, size), _starts(queries, device)
    if layout == "packed":
        keys, values = (of(BATCH * KEYS, heads_kv, size) for _ in range(2))
        starts_k = _starts(KEYS, device)
        return attention.attention_varlen(
            q, keys, values, starts, starts_k, queries, KEYS, **options
        )
    page, pages = int(layout), KEYS // int(layout)
    keys, values = (of(BATCH * pages, page, heads_kv, size) for _ in range(2))
    table = _indexes(list(range(BATCH * pages)), device).view(BATCH, pages)
    contexts = _indexes([KEYS] * BATCH, device)
    return attention.paged_attention(q, keys, values, starts, table, contexts, queries, **options)


def _write(dtype: torch.dtype, size: int, device: str) -> object:
    tokens, page = 512, 16
    k, v = (empty(tokens, HEADS_KV, size, dtype=dtype, device=device) for _ in range(2))
    caches = tuple(empty(64, page, HEADS_KV, size, dtype=dtype, device=device) for _ in range(2))
    slots = torch.arange(tokens, device=device)
    attention.paged_cache_write(k, v, caches[0], caches[1], slots)
    return caches


def cases() -> list[Case]:
    names, sizes = ("bf16", "f32"), (64, 128, 256, 512)
    layouts = [
        *(("padded", kind) for kind in ("bare", "scored", "few split")),
        *(("16", kind) for kind in ("bare", "scored", "few split")),
    ]
    rows = [(*both, name, size) for both in layouts for name in names for size in sizes]
    # The rest shares rows of the table with those: one head size of each.
    rows += [
        (*both, name, 128)
        for both in (
            *(("packed", kind) for kind in ("bare", "scored", "few split")),
            *(("padded", "few"), ("256", "few split")),
        )
        for name in names
    ]
    # Whole tiles in a page are read as padded keys are, but for the page's number.
    rows += [("256", "scored", name, 128) for name in names]
    # float16 shares bfloat16's tiles; a head size of 80 fills none, and rows of 33 start anywhere.
    rows += [("padded", "bare", "f16", 128), ("padded", "scored", "bf16", 80)]
    rows += [("padded", "few split", "f32", 33)]
    forward = [
        Case(
            f"attention {_name(layout)}{kind} {name} {size}",
            functools.partial(_forward, layout, kind, TYPES[name], size),
            aligned=size % 16 == 0,
        )
        for layout, kind, name, size in rows
    ]
    write = [
        Case(f"cache write {name} {size}", functools.partial(_write, TYPES[name], size))
        for name, size in (("bf16", 128), ("f32", 128), ("bf16", 512))
    ]
    return forward + write


def _name(layout: str) -> str:
    if layout == "padded":
        return ""
    return f"{layout} " if layout == "packed" else f"pages of {layout} "
