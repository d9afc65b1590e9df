"""What only the GPU kernels of the linear layers' gradients have, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import triton_interpreter  # noqa: F401  mends bfloat16 before a kernel is defined
from lanewise.kernels import target
from lanewise.kernels.gemm import gated_linear_backward, linear_backward
from lanewise.kernels.gemm.backward_tiles import COLUMN_SUM, GATED_GRADIENT
from lanewise.kernels.gemm.column_sum import CHUNK, sum_rows
from numerics import assert_matmul_close, assert_within
from reference import ACTIVATIONS
from strategies import DTYPES, randn

ARCHITECTURES = tuple(target.ARCHITECTURES)


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every launch takes its tiles."""
    monkeypatch.setattr(target, "of", lambda device: target.ARCHITECTURES[request.param])
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_rows_in_every_tile(architecture: str, dtype: torch.dtype) -> None:
    tile = COLUMN_SUM.choose(target.ARCHITECTURES[architecture], "any")
    for rows in (0, 1, tile.m + 1, CHUNK, 2 * CHUNK + 3):
        x = randn((rows, 2 * tile.n), dtype, rows)[:, : tile.n + 3]
        out = torch.empty(tile.n + 3)
        sum_rows(x, out)
        assert_matmul_close(out, x.double().sum(0), x.double().abs().sum(0), rows)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_both_gradients_of_a_gate_in_every_tile(architecture: str, activation: str) -> None:
    """Through 1 × 1 weights of one, the gradient of the bias is that of the sum."""
    tile = GATED_GRADIENT.choose(target.ARCHITECTURES[architecture], "any")
    columns = tile.n + 5
    x, weight, grad = torch.ones(1, 1), torch.ones(columns, 1), randn((1, columns), seed=3)
    sums = [randn((1, columns), seed=seed) * 3 for seed in (1, 2)]
    z, u = (s.double().requires_grad_() for s in sums)
    expected = torch.autograd.grad(ACTIVATIONS[activation](z) * u, (z, u), grad.double())
    found = gated_linear_backward(
        grad, x, weight, weight, *sums, None, None, activation, False, False, True
    )
    for ours, ref, factor in zip(found[3:], expected, (u, z), strict=True):
        size = (grad.double().abs() * (1 + factor.abs()) * (1 + z.abs())).detach()
        assert_within(ours, ref[0], 8 * 2**-23 * size[0])


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "none"])
def test_derivatives_over_their_range(activation: str) -> None:
    """Through a 1 × 1 weight of one, the gradient of x is the derivative."""
    z = torch.cat([torch.linspace(-12, 12, 1201), torch.tensor([-1e30, -88.0, 0.0, 88.0, 1e30])])
    z = z[z != 0] if activation == "relu" else z
    ones = torch.ones(len(z), 1)
    (ours, *_) = linear_backward(ones, z[:, None], ones[:1], None, activation, True, False, False)
    exact = z.double()[:-5] if activation == "gelu_tanh" else z.double()
    exact.requires_grad_()
    (ref,) = torch.autograd.grad(ACTIVATIONS[activation](exact).sum(), exact)
    bound = 8 * 2**-23 * (1 + exact.abs().clamp(max=12))
    assert_within(ours[: len(ref), 0], ref, bound)


@pytest.mark.parametrize("activation", ["none", "silu"])
def test_a_gradient_further_apart_than_32_bits(activation: str) -> None:
    apart = 2**30 + 8
    grad = torch.empty(2 * apart + 16, dtype=torch.bfloat16).as_strided((3, 16), (apart, 1))
    grad.copy_(randn((3, 16), torch.bfloat16))
    x, weight, sums = randn((3, 8), torch.bfloat16), randn((16, 8), torch.bfloat16), randn((3, 16))
    needs = (True, True, True)
    for far, near in zip(
        linear_backward(grad, x, weight, None, activation, *needs),
        linear_backward(grad.clone(), x, weight, None, activation, *needs),
        strict=True,
    ):
        assert torch.equal(far, near)
    rest = (x, weight, weight, sums, sums, None, None, activation, *needs)
    for far, near in zip(
        gated_linear_backward(grad, *rest), gated_linear_backward(grad.clone(), *rest), strict=True
    ):
        assert torch.equal(far, near)


def test_no_rows_have_gradients_of_zero() -> None:
    x, weight, grad = torch.empty(0, 8), randn((5, 8)), torch.empty(0, 5)
    grad_x, grad_weight, grad_bias = linear_backward(
        grad, x, weight, None, "silu", True, True, True
    )
    assert grad_x.shape == (0, 8)
    assert (grad_weight == 0).all()
    assert (grad_bias == 0).all()
