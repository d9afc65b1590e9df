"""Matrix products on GPUs: the functions here bear the names of the ops that they launch."""

from .linear import linear
from .matmul import matmul

__all__ = ["linear", "matmul"]
