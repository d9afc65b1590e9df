"""lanewise.rope against float64: both pairings, partial rotation, both shapes of angles."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_matmul_close, assert_same_bits, assert_threads_agree
from strategies import DTYPES, LAYOUTS, dtypes, layouts, randn
from torch import Tensor

import lanewise


def angles(shape: tuple[int, ...], layout: str = "contiguous") -> tuple[Tensor, Tensor]:
    """cos and sin as a model makes them: not independent, both within [-1, 1]."""
    theta = randn(shape, seed=11, scale=20.0)
    if layout == "sliced":
        wide = torch.nn.functional.pad(theta, (0, 3))
        return wide.cos()[..., : shape[-1]], wide.sin()[..., : shape[-1]]
    return theta.cos(), theta.sin()


def check(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> None:
    """Each output is a product over two terms; what is not rotated passes through untouched."""
    ref = reference.rope(x, cos, sin, interleaved=interleaved)
    swapped = reference.rope(x.abs(), cos.abs(), -sin.abs(), interleaved=interleaved)
    other = reference.rope(x.abs(), cos.abs(), sin.abs(), interleaved=interleaved)
    size = torch.maximum(swapped.abs(), other.abs())  # |a||cos| + |b||sin| of each pair
    rotated = 2 * cos.shape[-1]
    assert out.dtype == x.dtype
    assert out.shape == x.shape
    assert_matmul_close(out[..., :rotated], ref[..., :rotated], size[..., :rotated], 2)
    assert_same_bits(out[..., rotated:], x[..., rotated:])


@given(
    batch=st.sampled_from((1, 2, 3, 0)),
    heads=st.sampled_from((1, 2, 5, 0)),
    queries=st.sampled_from((0, 1, 3, 17, 40)),
    half=st.sampled_from((0, 1, 2, 3, 8, 17, 32, 64)),
    rest=st.sampled_from((0, 1, 5, 32)),
    per_batch=st.booleans(),
    interleaved=st.booleans(),
    dtype=dtypes,
    layout=layouts,
    angle_layout=st.sampled_from(("contiguous", "sliced")),
)
def test_forward_and_gradient(
    batch: int,
    heads: int,
    queries: int,
    half: int,
    rest: int,
    per_batch: bool,
    interleaved: bool,
    dtype: torch.dtype,
    layout: str,
    angle_layout: str,
) -> None:
    head_dim = max(2 * half + rest, 1)
    x = randn((batch, heads, queries, head_dim), dtype, 1, layout).requires_grad_()
    cos, sin = angles((batch, queries, half) if per_batch else (queries, half), angle_layout)
    out = lanewise.rope(x, cos, sin, interleaved=interleaved)
    check(out.detach(), x.detach(), cos, sin, interleaved)
    # The inverse of a rotation is its transpose: the gradient turns the other way.
    g = randn(tuple(x.shape), dtype, 2)
    (grad,) = torch.autograd.grad(out, x, g)
    check(grad, g, cos, -sin, interleaved)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_give_the_bits_of_contiguous_inputs(
    layout: str, interleaved: bool, dtype: torch.dtype
) -> None:
    x = randn((2, 3, 9, 40), dtype, 1, layout)
    cos, sin = angles((9, 16), "sliced")
    dense = (x.contiguous(), cos.contiguous(), sin.contiguous())
    strided = lanewise.rope(x, cos, sin, interleaved=interleaved)
    assert_same_bits(strided, lanewise.rope(*dense, interleaved=interleaved))


def test_expanded_angles() -> None:
    x = randn((3, 2, 5, 8))
    cos, sin = angles((5, 4))
    expanded = lanewise.rope(x, cos.expand(3, 5, 4), sin.expand(3, 5, 4))
    assert_same_bits(expanded, lanewise.rope(x, cos, sin))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [math.nan, math.inf])
def test_nan_and_infinity_stay_in_their_pair(
    interleaved: bool, dtype: torch.dtype, special: float
) -> None:
    x = randn((1, 2, 3, 20), dtype)
    x[0, 1, 2, 5], x[0, 0, 0, 19] = special, special
    cos, sin = angles((3, 8))
    out = lanewise.rope(x, cos, sin, interleaved=interleaved)
    ref = reference.rope(x, cos, sin, interleaved=interleaved)
    assert torch.equal(out.isfinite(), ref.isfinite())
    assert torch.equal(out.isnan(), ref.isnan())


def test_the_input_is_left_alone() -> None:
    x = randn((1, 2, 3, 16))
    before = x.clone()
    out = lanewise.rope(x, *angles((3, 8)))
    assert torch.equal(x, before)
    assert out.data_ptr() != x.data_ptr()


@pytest.mark.cpu
@pytest.mark.parametrize("interleaved", [False, True])
def test_threads_agree(interleaved: bool) -> None:
    x, (cos, sin) = randn((2, 7, 130, 64), torch.bfloat16), angles((130, 32))
    assert_threads_agree(lambda: lanewise.rope(x, cos, sin, interleaved=interleaved))
