"""Where lanewise is at least as fast as torch: pure functions of a call and the instruction set.

Each answers SERVED, or the reason to leave a call to torch. The bounds are where torch 2.13 and
lanewise took the same time, on two cores of a Zen 5 machine as it is (avx512bf16) and as if it had
no AVX-512 (avx2), and on an Intel Xeon (amx); the detour through Python is
counted in, which small calls do not repay.
"""

from __future__ import annotations

import torch

from lanewise import _host
from lanewise.integrations.aten.reason import SERVED, TOO_SMALL, TORCH_IS_FASTER, UNMEASURED

MEASURED = ("avx2", "avx512", "avx512bf16")  # the second is the third but for bfloat16
NORMS_MEASURED = (*MEASURED, "amx")  # whose norms are those of the set below

# Multiplications from which a product pays: of one row, of up to 16 rows, and of more.
_AVX2 = {
    torch.float32: (1 << 19, 1 << 18, 1 << 21),
    torch.bfloat16: (1 << 18, 1 << 15, 1 << 15),
    torch.float16: (1 << 18, 1 << 15, 1 << 15),
}
_AVX512 = {
    torch.float32: (1 << 19, 1 << 18, 1 << 19),
    torch.float16: (1 << 18, 1 << 15, 1 << 15),
}
_FEWEST = {
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512bf16": {**_AVX512, torch.bfloat16: (1 << 16, 1 << 13, 1 << 13)},
    "amx": {**_AVX512, torch.bfloat16: (1 << 16, 1 << 13, 1 << 13)},
}

# What is told at a glance: below these, no call of a dtype pays on this CPU.
LEAST_PRODUCT = {dtype: min(fewest) for dtype, fewest in _FEWEST.get(_host.isa(), {}).items()}
LEAST_ATTENTION = {torch.float32: 1 << 17, torch.bfloat16: 1 << 15, torch.float16: 1 << 15}
LEAST_LAYER_NORM = 1 << 18  # elements


def product(
    isa: str, threads: int, dtype: torch.dtype, batch: int, m: int, n: int, k: int, layout: str
) -> str:
    """`batch` products of [m, k] and [k, n].

    `layout` is "linear" where both operands are contiguous along k, as those of F.linear,
    "plain" where both are along their last dimension, and "other".
    """
    fewest = _FEWEST.get(isa, {}).get(dtype)
    if fewest is None:
        return UNMEASURED
    work = m * n * k
    if batch * work < fewest[0 if m == 1 else 1 if m <= 16 else 2]:
        return TOO_SMALL
    if dtype is torch.float32:
        if batch > 1 and (m == 1 or work < 1 << 18):
            return TORCH_IS_FASTER
        # MKL reads few rows at the memory's pace by one thread, but not by several.
        if threads == 1 and (m == 1 or (m <= 16 and batch * work < 1 << 20)):
            return TORCH_IS_FASTER
    elif dtype is torch.bfloat16:
        # torch has kernels for CPUs that multiply bfloat16, and one for others: that of the
        # gradient of a weight.
        most_rows = 32 if layout == "linear" else 2
        if isa == "avx512bf16" and (batch > 1 or (work > 1 << 22 and m > most_rows)):
            return TORCH_IS_FASTER
        if isa == "amx" and (batch > 1 or layout != "linear" or m > 512):
            return TORCH_IS_FASTER
        if isa == "avx2" and layout == "other" and (m < 4 or batch * work < 1 << 18):
            return TORCH_IS_FASTER
    return SERVED


def product_with_summand(dtype: torch.dtype, m: int, n: int, k: int) -> str:
    """Besides, where each product of a batch has a summand: they are served one by one."""
    if dtype is torch.float32:
        return TORCH_IS_FASTER
    return SERVED if m * n * k >= 1 << 15 else TOO_SMALL


def attention(
    isa: str,
    dtype: torch.dtype,
    group: int,
    queries: int,
    keys: int,
    dim: int,
    causal: bool,
    gradient: bool,
) -> str:
    """Scaled dot-product attention, its forward or its backward pass.

    `group`: heads for each key head.
    """
    if isa in MEASURED:
        return SERVED
    if isa != "amx":
        return UNMEASURED
    # There torch multiplies bfloat16 in tiles both ways, and float16 by instructions of its own.
    if gradient:
        small = dtype is torch.float32 and keys < 128
        long = dtype is not torch.float32 and keys > 512 and not (causal and dim <= 64)
        return TORCH_IS_FASTER if small or long else SERVED
    if queries == 1:
        return TORCH_IS_FASTER if group == 1 and dtype is not torch.float16 else SERVED
    wide = not causal and dim >= 128
    if dtype is torch.float16 or (dtype is torch.bfloat16 and (queries < 16 or wide)):
        return TORCH_IS_FASTER
    return SERVED


def rms_norm(isa: str, cols: int) -> str:
    """Root mean square norm of any number of rows: torch makes a dozen passes of its own each."""
    return SERVED if isa in NORMS_MEASURED else UNMEASURED


def layer_norm(isa: str, dtype: torch.dtype, rows: int, cols: int, gradient: bool) -> str:
    """Layer norm, alone or with its gradient, which needs an autograd function in Python."""
    if isa not in NORMS_MEASURED:
        return UNMEASURED
    if cols < 256 or rows * cols < (1 << 20 if gradient else LEAST_LAYER_NORM):
        return TOO_SMALL
    if gradient and dtype is torch.float32 and rows * cols < 1 << 21:
        return TOO_SMALL
    return SERVED
