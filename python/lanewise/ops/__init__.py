"""The ops as plain functions, one file per family."""

from lanewise.ops.gemm import (
    gated_linear,
    gated_linear_packed,
    linear,
    linear_packed,
    matmul,
    pack_weight,
)
from lanewise.ops.rope import rope

__all__ = [
    "gated_linear",
    "gated_linear_packed",
    "linear",
    "linear_packed",
    "matmul",
    "pack_weight",
    "rope",
]
