"""Every tile of the kernels around packed weights, and the products that read them."""

from __future__ import annotations

import functools

import torch

from .. import gemm
from .case import TYPES, Case, Promise, empty

PROMISES = {
    "pack_rows": Promise(products=False, copies=False),
    # A header and a vector: its launch is what it costs.
    "guarded_bias": Promise(products=False, copies=False, vectors=False, wide=False),
}


def _pack(dtype: torch.dtype, layout: str, device: str) -> object:
    """`layout` is that of the weight: n has contiguous rows, t contiguous columns."""
    weight = empty(4096, 4096, dtype=dtype, device=device)
    return gemm.pack_weight(weight if layout == "n" else weight.mT)


def _linear(dtype: torch.dtype, device: str) -> object:
    return gemm.linear_packed(
        empty(1, 4096, dtype=dtype, device=device),
        gemm.pack_weight(empty(4096, 4096, dtype=dtype, device=device)),
        empty(4096, dtype=dtype, device=device),
    )


def _gated(dtype: torch.dtype, device: str) -> object:
    gate, up = (gemm.pack_weight(empty(4096, 4096, dtype=dtype, device=device)) for _ in range(2))
    return gemm.gated_linear_packed(empty(1, 4096, dtype=dtype, device=device), gate, up)


def cases() -> list[Case]:
    pack = [
        Case(f"pack {name} {layout}", functools.partial(_pack, TYPES[name], layout))
        for name in ("bf16", "f32")
        for layout in ("n", "t")
    ]
    return [
        *pack,
        Case("linear packed bf16", functools.partial(_linear, TYPES["bf16"])),
        Case("linear packed f32", functools.partial(_linear, TYPES["f32"])),
        Case("gated packed bf16", functools.partial(_gated, TYPES["bf16"])),
    ]
