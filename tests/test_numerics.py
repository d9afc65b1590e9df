"""The assertions of numerics.py let a right result pass and catch a wrong one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from numerics import (
    assert_matmul_close,
    assert_no_worse_than,
    assert_same_bits,
    assert_within,
    ulp,
)
from strategies import DTYPES, LAYOUTS, randn


@pytest.mark.parametrize("dtype", DTYPES)
def test_ulp_is_the_distance_to_the_next_number(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, 1.5, 3.0, 1024.0, 1e-3, 0.0], dtype=dtype)
    if dtype == torch.float32:
        step = torch.nextafter(x, torch.tensor(math.inf)).double() - x.double()
    else:
        step = (x.view(torch.int16) + 1).view(dtype).double() - x.double()
    assert torch.equal(ulp(x.double(), dtype), step)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_rounding_passes_and_two_ulp_fail(dtype: torch.dtype) -> None:
    ref = torch.rand(100, dtype=torch.float64) + 1
    zero = torch.zeros_like(ref)
    assert_within(ref.to(dtype), ref, zero)
    with pytest.raises(AssertionError, match="outside the bound"):
        assert_within((ref + 2 * ulp(ref, dtype)).to(dtype), ref, zero)


def test_matmul_bound_accepts_float32_and_rejects_bfloat16_accumulation() -> None:
    a, b = randn((64, 1000), seed=1), randn((1000, 64), seed=2)
    ref, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    assert_matmul_close(a @ b, ref, size, 1000)
    with pytest.raises(AssertionError):
        assert_matmul_close((a.bfloat16() @ b.bfloat16()).float(), ref, size, 1000)


def test_no_worse_than_compares_with_the_peer() -> None:
    ref = torch.rand(1000, dtype=torch.float64) + 1
    peer = ref + 1e-3
    assert_no_worse_than((ref + 1.9e-3).float(), ref, peer)
    with pytest.raises(AssertionError, match=r"peers' 0\.001"):
        assert_no_worse_than((ref + 2.1e-3).float(), ref, peer)


def within(out: torch.Tensor, ref: torch.Tensor) -> None:
    assert_within(out, ref, torch.full_like(ref, 1e-6))


def no_worse(out: torch.Tensor, ref: torch.Tensor) -> None:
    assert_no_worse_than(out, ref, ref)


@pytest.mark.parametrize("check", [within, no_worse])
def test_nan_and_infinity_must_match(check: Callable[..., None]) -> None:
    special = torch.tensor([math.nan, math.inf, -math.inf, 1.0], dtype=torch.float64)
    check(special.float(), special)
    for i in range(4):
        for wrong in (math.nan, math.inf, -math.inf, 0.0):
            out = special.float()
            if out[i] == wrong or (out[i].isnan() and math.isnan(wrong)):
                continue
            out[i] = wrong
            with pytest.raises(AssertionError):
                check(out, special)


@pytest.mark.parametrize("check", [within, no_worse])
def test_overflow_of_the_output_dtype_is_infinity(check: Callable[..., None]) -> None:
    ref = torch.tensor([1e5, -1e5], dtype=torch.float64)
    check(ref.half(), ref)
    with pytest.raises(AssertionError):
        check(-ref.half(), ref)


@pytest.mark.parametrize("check", [within, no_worse])
def test_empty_passes_and_shapes_must_match(check: Callable[..., None]) -> None:
    check(torch.empty(0, 3), torch.empty(0, 3, dtype=torch.float64))
    with pytest.raises(AssertionError, match="shape"):
        check(torch.ones(1, 3), torch.ones(3, 1, dtype=torch.float64))


def test_same_bits_tells_zeros_apart() -> None:
    assert_same_bits(torch.tensor([math.nan, 0.0]), torch.tensor([math.nan, 0.0]))
    with pytest.raises(AssertionError):
        assert_same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5), (4, 5), (5,), (0, 3), (1, 1, 1), ()])
def test_layouts_keep_the_shape_and_the_innermost_stride(
    layout: str, shape: tuple[int, ...]
) -> None:
    t = randn(shape, torch.bfloat16, seed=3, layout=layout)
    assert t.shape == shape
    assert t.dtype == torch.bfloat16
    assert not shape or shape[-1] <= 1 or t.stride(-1) == 1
    if min(shape, default=0) > 1 and len(shape) > 2:
        assert t.is_contiguous() == (layout == "contiguous")
        assert (0 in t.stride()) == (layout == "expanded")
