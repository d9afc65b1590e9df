"""Matrix products on GPUs: the functions here bear the names of the ops that they launch."""

from .gated import gated_linear, gated_linear_for_backward
from .linear import linear
from .matmul import matmul

__all__ = ["gated_linear", "gated_linear_for_backward", "linear", "matmul"]
