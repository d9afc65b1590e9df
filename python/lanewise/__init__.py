"""Fused attention and GEMM for PyTorch: hand-written SIMD on the CPU, Triton on the GPU.

Importing registers every op as ``torch.ops.lanewise.*``; the same ops are plain functions here:
``lanewise.attention(q, k, v, causal=True)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lanewise.integrations.aten import disable, enable, use
from lanewise.ops import (
    add_layer_norm,
    add_rms_norm,
    attention,
    attention_varlen,
    decoder_layer,
    gated_linear,
    gated_linear_packed,
    layer_norm,
    linear,
    linear_packed,
    matmul,
    pack_weight,
    paged_attention,
    paged_cache_write,
    rms_norm,
    rope,
)

if TYPE_CHECKING:
    from lanewise.integrations.optimize import optimize, unoptimize

__version__ = "0.1.0"

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "attention",
    "attention_varlen",
    "decoder_layer",
    "disable",
    "enable",
    "gated_linear",
    "gated_linear_packed",
    "layer_norm",
    "linear",
    "linear_packed",
    "matmul",
    "optimize",
    "pack_weight",
    "paged_attention",
    "paged_cache_write",
    "rms_norm",
    "rope",
    "unoptimize",
    "use",
]


def __getattr__(name: str) -> Any:
    # The doors are opened when they are used.
    if name in ("optimize", "unoptimize"):
        from lanewise.integrations import optimize

        return getattr(optimize, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
