"""Activations in float32, for the epilogues of other kernels."""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "tanh")


# In an epilogue, the derivative by which a gradient is multiplied: "gelu'" for "gelu".
DERIVATIVES = tuple(f"{name}'" for name in ACTIVATIONS)


@triton.constexpr_function
def is_derivative(name):
    return name.endswith("'")


@triton.constexpr_function
def differentiated(name):
    """The activation of which `name` is the derivative."""
    return name.removesuffix("'")


@triton.jit
def tanh(x):
    """tanh to a few ulp: 1 - 2 / (1 + exp(2|x|)) cancels near zero, so an odd polynomial takes over
    there (the coefficients of Cephes tanhf)."""
    square = x * x
    near = -5.70498872745e-3 * square + 2.06390887954e-2
    near = near * square - 5.37397155531e-2
    near = near * square + 1.33314422036e-1
    near = near * square - 3.33332819422e-1
    near = near * square * x + x
    far = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * tl.abs(x)))
    return tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0.0, -far, far))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """Elementwise, as torch.nn.functional names and defines them; NaN stays NaN."""
    if ACTIVATION == "relu":
        return tl.where(x < 0.0, 0.0, x)
    if ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    if ACTIVATION == "gelu_tanh":
        return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    if ACTIVATION == "silu":
        return x / (1.0 + tl.exp(-x))
    if ACTIVATION == "tanh":
        return tanh(x)
    return x


@triton.jit
def activation_gradient(x, ACTIVATION: tl.constexpr):
    """The derivative of `activate`, elementwise; NaN stays NaN, nothing overflows far from 0."""
    if ACTIVATION == "relu":
        return tl.where(x == x, tl.where(x > 0.0, 1.0, 0.0), x)
    if ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density
    if ACTIVATION == "gelu_tanh":
        # Beyond ±16 the derivative is 1 or 0 in float32, but x³ would overflow and give ∞ · 0.
        near = tl.where(x > 16.0, 16.0, tl.where(x < -16.0, -16.0, x))
        square = near * near
        factor = 1.5957691216057308 + 0.21406444881478607 * square
        return sigmoid_and(
            near * (1.5957691216057308 + 0.07135481627159536 * square), near * factor
        )
    if ACTIVATION == "silu":
        return sigmoid_and(x, x)
    if ACTIVATION == "tanh":
        # 1 - tanh² = 4e / (1 + e)² with e = exp(-2|x|): no cancellation at either end.
        e = tl.exp(-2.0 * tl.abs(x))
        return 4.0 * e / ((1.0 + e) * (1.0 + e))
    return tl.full(x.shape, 1.0, tl.float32)


@triton.jit
def sigmoid_and(x, factor):
    """sigmoid(x) + factor · sigmoid'(x), by exp(-|x|), which neither overflows nor leaves
    1 - sigmoid to cancellation. Below float32's normal numbers it is 0, whatever the GPU does."""
    e = tl.where(tl.abs(x) > 87.33654, 0.0, tl.exp(-tl.abs(x)))
    upper = 1.0 / (1.0 + e)
    return upper * (tl.where(x < 0.0, e, 1.0) + factor * (e * upper))
