"""The ops as plain functions, one file per family."""

from lanewise.ops import _triton  # noqa: F401  registers the GPU side
from lanewise.ops.attention import attention
from lanewise.ops.attention_paged import paged_attention, paged_cache_write
from lanewise.ops.attention_varlen import attention_varlen
from lanewise.ops.gemm import (
    gated_linear,
    gated_linear_packed,
    linear,
    linear_packed,
    matmul,
    pack_weight,
)
from lanewise.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from lanewise.ops.rope import rope
from lanewise.ops.transformer import decoder_layer

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "attention",
    "attention_varlen",
    "decoder_layer",
    "gated_linear",
    "gated_linear_packed",
    "layer_norm",
    "linear",
    "linear_packed",
    "matmul",
    "pack_weight",
    "paged_attention",
    "paged_cache_write",
    "rms_norm",
    "rope",
]
