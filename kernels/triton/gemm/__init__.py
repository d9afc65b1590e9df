"""Matrix products on GPUs: the functions here bear the names of the ops that they launch."""

from .backward import gated_linear_backward, linear_backward
from .gated import gated_linear, gated_linear_for_backward
from .linear import linear
from .matmul import matmul
from .packed import gated_linear_packed, linear_packed, pack_weight

__all__ = [
    "gated_linear",
    "gated_linear_backward",
    "gated_linear_for_backward",
    "gated_linear_packed",
    "linear",
    "linear_backward",
    "linear_packed",
    "matmul",
    "pack_weight",
]
