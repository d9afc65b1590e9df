"""Matrix products through torch's own names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import EPS32, assert_matmul_close, ulp
from routing import always
from strategies import DTYPES, dtypes, extents, layouts, randn, seeds
from torch import Tensor

from lanewise.integrations.aten import worth
from lanewise.integrations.aten.reason import SERVED, TOO_SMALL, TORCH_IS_FASTER, UNMEASURED

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def check(call: Any, a: Tensor, b: Tensor, c: Tensor | None = None) -> None:
    """`call(…)` is a @ b (+ c), as exact as float32 sums that are rounded once."""
    with always():
        out = call(*(t for t in (c, a, b) if t is not None))
    plain = call(*(t for t in (c, a, b) if t is not None))
    assert out.dtype == plain.dtype
    assert out.shape == plain.shape
    assert out.stride() == plain.stride()
    ref, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    if c is not None:
        ref, size = ref + c.double(), size + c.double().abs()
    assert_matmul_close(out, ref, size, a.shape[-1] + 1)


@given(dtypes, extents, extents, extents, layouts, layouts, st.booleans(), st.booleans(), seeds)
def test_mm(
    dtype: torch.dtype, m: int, n: int, k: int, x: str, y: str, left: bool, right: bool, seed: int
) -> None:
    a = randn((k, m), dtype, seed, x).t() if left else randn((m, k), dtype, seed, x)
    b = randn((n, k), dtype, seed + 1, y).t() if right else randn((k, n), dtype, seed + 1, y)
    check(torch.mm, a, b)
    check(torch.bmm, a[None], b[None])
    check(torch.addmm, a, b, randn((n,), dtype, seed + 2))
    check(torch.addmm, a, b, randn((m, n), dtype, seed + 2, x))
    check(torch.addmm, a, b, randn((1, n), dtype, seed + 2))
    check(torch.addmm, a, b, randn((m, 1), dtype, seed + 2))


@given(dtypes, st.integers(0, 4), extents, extents, layouts, layouts, seeds)
def test_bmm(dtype: torch.dtype, batch: int, m: int, k: int, x: str, y: str, seed: int) -> None:
    a, b = randn((batch, m, k), dtype, seed, x), randn((batch, k, 9), dtype, seed + 1, y)
    check(torch.bmm, a, b)
    check(torch.baddbmm, a, b, randn((batch, m, 9), dtype, seed + 2, x))
    check(torch.baddbmm, a, b, randn((m, 9), dtype, seed + 2))
    check(torch.matmul, a, b[:1].squeeze(0) if batch else b)


@every_dtype
@pytest.mark.parametrize("beta", [0, 0.0, False, 1, 1.0, True, 0.5, -1])
@pytest.mark.parametrize("alpha", [1, 1.0, 0, 2.5])
def test_beta_and_alpha(dtype: torch.dtype, beta: float, alpha: float) -> None:
    a, b, c = (randn((2, 8, 8), dtype, seed) for seed in range(3))
    if beta == 0:
        c.fill_(float("nan"))  # which must not be read
    for call, operands in (
        (torch.addmm, (c[0], a[0], b[0])),
        (torch.addmm, (c[0, 0], a[0], b[0])),
        (torch.baddbmm, (c, a, b)),
    ):
        plain = call(*operands, beta=beta, alpha=alpha)
        with always() as report:
            out = call(*operands, beta=beta, alpha=alpha)
        assert bool(report.routed) == (alpha == 1 and beta in (0, 1))
        torch.testing.assert_close(out, plain)


@every_dtype
def test_values_that_are_not_finite(dtype: torch.dtype) -> None:
    a = torch.ones(8, 8, dtype=dtype)
    a[0, 0], a[1, 0], a[2, 0] = float("nan"), float("inf"), 0
    b = torch.ones(8, 8, dtype=dtype)
    b[0, 3], b[0, 4] = float("inf"), 0
    plain = a @ b
    with always():
        torch.testing.assert_close(a @ b, plain, equal_nan=True, rtol=0, atol=0)


WRONG = {
    "inner": lambda: torch.mm(torch.ones(4, 5), torch.ones(4, 5)),
    "rank": lambda: torch.mm(torch.ones(4), torch.ones(4, 5)),
    "no dimension": lambda: torch.mm(torch.ones(4, 4), torch.ones(())),
    "neither": lambda: torch.mm(torch.ones(()), torch.ones(())),
    "dtype": lambda: torch.mm(torch.ones(4, 4), torch.ones(4, 4).bfloat16()),
    "bool": lambda: torch.mm(torch.ones(4, 4).bool(), torch.ones(4, 4).bool()),
    "batch": lambda: torch.bmm(torch.ones(2, 4, 4), torch.ones(3, 4, 4)),
    "batch rank": lambda: torch.bmm(torch.ones(2, 4, 4), torch.ones(4, 4)),
    "summand": lambda: torch.addmm(torch.ones(3), torch.ones(4, 4), torch.ones(4, 4)),
    "unread": lambda: torch.addmm(torch.ones(3), torch.ones(4, 4), torch.ones(4, 4), beta=0),
    "its dtype": lambda: torch.addmm(torch.ones(4).double(), torch.ones(4, 4), torch.ones(4, 4)),
    "its rank": lambda: torch.baddbmm(torch.ones(1, 1, 1, 4), *(torch.ones(2, 4, 4),) * 2),
    "complex": lambda: torch.addmm(torch.ones(4), torch.ones(4, 4), torch.ones(4, 4), beta=1j),
    "device": lambda: torch.mm(torch.ones(4, 4), torch.ones(4, 4, device="meta")),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors_are_torchs(what: str) -> None:
    def outcome() -> Any:
        try:
            return WRONG[what]().shape
        except Exception as error:
            return type(error), str(error)

    plain = outcome()
    with always():
        assert outcome() == plain


@every_dtype
def test_gradients(dtype: torch.dtype) -> None:
    """Twice, of a layer with and without a bias."""
    x, w, b = randn((3, 5, 16), dtype, 1), randn((8, 16), dtype, 2), randn((8,), dtype, 3)

    def grads(dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in (x, w, b)]
        y = torch.nn.functional.linear(*leaves)
        y = y + torch.nn.functional.linear(leaves[0], leaves[1])
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)]

    exact = grads(torch.float64)
    plain = grads(dtype)
    with always() as report:
        ours = grads(dtype)
    assert report.routed["mm"] > 4
    for our, torchs, ref in zip(ours, plain, exact, strict=True):
        error, peer = ((t.double() - ref).abs().max() for t in (our, torchs))
        assert error <= 2 * peer + 4 * ulp(ref.abs().max(), dtype) + 16 * EPS32 * ref.abs().max()


def test_where_it_pays() -> None:
    f32, bf16, f16 = DTYPES
    cases = [
        (TOO_SMALL, ("avx2", 2, f32, 1, 16, 16, 16, "linear")),
        (SERVED, ("avx2", 2, f32, 1, 128, 768, 768, "linear")),
        (SERVED, ("avx2", 2, f32, 1, 1, 768, 768, "linear")),
        (TORCH_IS_FASTER, ("avx2", 1, f32, 1, 1, 768, 768, "linear")),
        (SERVED, ("avx2", 1, f32, 1, 4, 768, 768, "plain")),
        (TORCH_IS_FASTER, ("avx2", 2, f32, 512, 16, 16, 16, "linear")),
        (SERVED, ("avx2", 2, f32, 12, 128, 128, 64, "linear")),
        (SERVED, ("avx2", 2, bf16, 1, 8, 64, 64, "plain")),
        (TORCH_IS_FASTER, ("avx2", 2, bf16, 1, 2, 256, 256, "other")),
        (SERVED, ("avx2", 2, f16, 64, 8, 8, 8, "other")),
        (SERVED, ("avx512bf16", 2, bf16, 1, 16, 768, 768, "linear")),
        (TORCH_IS_FASTER, ("avx512bf16", 2, bf16, 1, 512, 768, 768, "linear")),
        (TORCH_IS_FASTER, ("avx512bf16", 2, bf16, 1, 16, 768, 768, "plain")),
        (TORCH_IS_FASTER, ("avx512bf16", 2, bf16, 12, 128, 128, 64, "plain")),
        (SERVED, ("avx512bf16", 2, f16, 1, 512, 768, 768, "other")),
        (SERVED, ("amx", 2, bf16, 1, 512, 768, 768, "linear")),
        (TORCH_IS_FASTER, ("amx", 2, bf16, 1, 2048, 768, 768, "linear")),
        (TORCH_IS_FASTER, ("amx", 2, bf16, 1, 512, 768, 768, "plain")),
        (SERVED, ("avx512", 2, f32, 1, 512, 768, 768, "linear")),
        (UNMEASURED, ("avx512", 2, bf16, 1, 512, 768, 768, "linear")),
        (UNMEASURED, ("generic", 2, f32, 1, 512, 768, 768, "linear")),
        (UNMEASURED, ("neon", 2, bf16, 1, 512, 768, 768, "linear")),
    ]
    for answer, call in cases:
        assert worth.product(*call) == answer, call
