"""Fused attention and GEMM for PyTorch: hand-written SIMD on the CPU, Triton on the GPU.

Importing registers every op as ``torch.ops.lanewise.*``; the same ops are plain functions here:
``lanewise.attention(q, k, v, causal=True)``.
"""

from lanewise.ops import attention, rope

__version__ = "0.1.0"

__all__ = ["attention", "rope"]
