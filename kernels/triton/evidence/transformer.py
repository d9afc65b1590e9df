"""What a decoder layer launches and its parts alone do not: every tile of its table, and norms that
add a residual stream."""

from __future__ import annotations

import functools

import torch

from ..norm.launch_forward import normalise
from ..norm.tiles import WIDEST
from ..transformer.guard import guarded
from ..transformer.last import last_of
from .case import TYPES, Case, Promise, empty

PROMISES = {
    "last_tokens": Promise(products=False, copies=False),
    "guarded_layer_bias": Promise(products=False, copies=False, wide=False),
}
TOKENS, SEQUENCES = 8192, 64


def _last(dtype: torch.dtype, heads: int, size: int, device: str) -> None:
    x = empty(TOKENS, heads, size, dtype=dtype, device=device)
    last_of(x, torch.arange(0, TOKENS + 1, TOKENS // SEQUENCES, dtype=torch.int32, device=device))


def _guard(dtype: torch.dtype, device: str) -> None:
    """All weights of Llama 3's shapes are packed; only their headers are read."""
    width, hidden = 4096, 14336
    x, bias = (empty(*shape, width, dtype=dtype, device=device) for shape in ((1,), ()))
    qkv, o, up, gate, down = (
        torch.empty(columns, 16, dtype=torch.uint8, device=device)
        for columns in (6144, width, hidden, hidden, width)
    )
    guarded(x, bias, (qkv, o, up, gate, down), width)


def _norm_then_add(centred: bool, dtype: torch.dtype, columns: int, device: str) -> None:
    x, after = (empty(TOKENS, columns, dtype=dtype, device=device) for _ in range(2))
    weight = empty(columns, dtype=torch.float32, device=device)
    bias = weight if centred else None
    normalise("decoder_layer", x, None, after, weight, bias, 1e-6, 0.0, centred)


def cases() -> list[Case]:
    last = [
        Case(
            f"last tokens {name} {heads}×{size}", functools.partial(_last, TYPES[name], heads, size)
        )
        for name in ("bf16", "f32")
        for heads, size in ((1, 4096), (32, 128))
    ]
    added = [
        Case(
            f"{'layer' if centred else 'rms'}_norm then add bf16 {columns}",
            functools.partial(_norm_then_add, centred, torch.bfloat16, columns),
        )
        for columns in (4096, WIDEST, 2 * WIDEST)
        for centred in (False, True)
    ]
    guard = [
        Case(f"headers of packed weights {name}", functools.partial(_guard, TYPES[name]))
        for name in ("bf16", "f32")
    ]
    return last + guard + added
