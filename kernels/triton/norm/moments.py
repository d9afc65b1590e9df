"""What normalises a row: its values v become (v - mean) * inverse + shift.

`inverse` is 1 / sqrt(variance + eps), and `shift` mends the rounding of the mean by the deviations'
own mean (the corrected two-pass algorithm of Chan, Golub and LeVeque, 1983). A root mean square
norm centres nothing.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .rows import load_rows


@triton.jit
def inverse_root(variance, eps):
    """Of a variance that rounding may have left below zero; NaN stays NaN."""
    return 1.0 / tl.sqrt_rn(tl.where(variance < 0.0, 0.0, variance) + eps)


@triton.jit
def moments(b_v, mask, len_n, eps, CENTRED: tl.constexpr):
    """Mean, inverse and shift [BLOCK_R] of whole rows [BLOCK_R, BLOCK_N], zero outside the mask."""
    if CENTRED:
        mean = tl.sum(b_v, 1) / len_n
        b_d = tl.where(mask, b_v - mean[:, None], 0.0)
        rest = tl.sum(b_d, 1) / len_n
        inverse = inverse_root(tl.sum(b_d * b_d, 1) / len_n - rest * rest, eps)
        return mean, inverse, -rest * inverse
    inverse = inverse_root(tl.sum(b_v * b_v, 1) / len_n, eps)
    zero = tl.zeros_like(inverse)
    return zero, inverse, zero


@triton.jit
def long_moments(
    p_x, p_residual, o_x, o_residual, len_n, eps, BLOCK_N: tl.constexpr, CENTRED: tl.constexpr
):
    """Mean and inverse [1] of one row at offsets [1], by blocks, whose moments are combined as Chan
    et al. say; no difference of large sums is taken."""
    mean = tl.zeros([1], tl.float32)
    squares = tl.zeros([1], tl.float32)  # of the deviations
    for first in tl.range(0, len_n, BLOCK_N):
        o_n = first + tl.arange(0, BLOCK_N)
        mask = (o_n < len_n)[None, :]
        b_v = load_rows(p_x, p_residual, o_x, o_residual, o_n, mask)  # [1, BLOCK_N]
        if CENTRED:
            count = tl.minimum(len_n - first, BLOCK_N).to(tl.float32)
            block_mean = tl.sum(b_v, 1) / count
            b_d = tl.where(mask, b_v - block_mean[:, None], 0.0)
            rest = tl.sum(b_d, 1) / count
            apart = block_mean - mean + rest
            share = count / (first + count)
            mean += apart * share
            squares += tl.sum(b_d * b_d, 1) - rest * rest * count + apart * apart * share * first
        else:
            squares += tl.sum(b_v * b_v, 1)
    return mean, inverse_root(squares / len_n, eps)


@triton.jit
def normalised(b_v, mean, inverse, shift, CENTRED: tl.constexpr):
    if CENTRED:
        return (b_v - mean[:, None]) * inverse[:, None] + shift[:, None]
    return b_v * inverse[:, None]
