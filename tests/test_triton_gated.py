"""What only the GPU kernels of gated products have, their tiles, in Triton's interpreter."""

from __future__ import annotations

import pytest
import reference
import torch
import triton_interpreter  # noqa: F401  mends bfloat16 before a kernel is defined
from lanewise.kernels import target
from lanewise.kernels.gemm import gated_linear, gated_linear_for_backward
from lanewise.kernels.gemm.gated_tiles import GATED
from numerics import EPS32, activation_error, assert_matmul_close, assert_within, matmul_error
from reference import ACTIVATIONS
from strategies import randn
from torch import Tensor


def check(x: Tensor, gate: Tensor, up: Tensor, activation: str) -> None:
    """Both sums' bounds, carried through the activation and the product of the two."""
    out, *sums = gated_linear_for_backward(x, gate, up, activation=activation)
    refs = [reference.linear(x, weight) for weight in (gate, up)]
    sizes = [x.double().abs() @ weight.double().abs().mT for weight in (gate, up)]
    for found, ref, size in zip(sums, refs, sizes, strict=True):
        assert found.dtype == torch.float32
        assert_matmul_close(found, ref, size, x.size(-1))
    z_error, u_error = (matmul_error(size, x.size(-1)) for size in sizes)
    a, u = ACTIVATIONS[activation](refs[0]), refs[1]
    a_error = activation_error(refs[0], z_error, activation)
    error = a.abs() * u_error + u.abs() * a_error + a_error * u_error + EPS32 * (a * u).abs()
    assert_within(out, a * u, error)
    assert torch.equal(gated_linear(x, gate, up, activation=activation), out)


@pytest.mark.parametrize(
    ("architecture", "problem"), [(a, row) for a, rows in GATED.rows.items() for row in rows]
)
@pytest.mark.parametrize("k", [128, 77])
def test_every_tile_of_the_table(
    monkeypatch: pytest.MonkeyPatch, architecture: str, problem: str, k: int
) -> None:
    kind, bits = problem.split()
    dtype = {"16": torch.bfloat16, "32": torch.float32}[bits]
    tile = GATED.rows[architecture][problem]
    monkeypatch.setattr(target, "of", lambda device: target.ARCHITECTURES[architecture])
    monkeypatch.setattr("lanewise.kernels.gemm.gated_tiles.choose", lambda *_: tile)
    rows = 3 * tile.m - 5 if kind == "few" else tile.m + 3
    gate, up = (randn((tile.n + 9, k), dtype, seed, scale=0.5) for seed in (2, 3))
    check(randn((rows, k), dtype, 1), gate, up, "silu")


def test_weights_of_two_layouts() -> None:
    """One with contiguous rows and one with contiguous columns, and both of the latter."""
    x, gate, up = (randn((n, 64), torch.bfloat16, n) for n in (40, 96, 96))
    expected = gated_linear(x, gate, up)
    turned = [w.mT.contiguous().mT for w in (gate, up)]
    assert torch.equal(gated_linear(x, turned[0], up), expected)
    assert torch.equal(gated_linear(x, *turned), expected)


def test_rows_further_apart_than_32_bits() -> None:
    apart = 2**30 + 8
    wide = torch.empty(2 * apart + 16, dtype=torch.bfloat16).as_strided((3, 16), (apart, 1))
    wide.copy_(randn((3, 16), torch.bfloat16))
    other = randn((3, 16), torch.bfloat16, 1)
    near = wide.clone()
    assert torch.equal(gated_linear(wide, other, other), gated_linear(near, other, other))
    assert torch.equal(gated_linear(other, wide, other), gated_linear(other, near, other))
    assert torch.equal(gated_linear(other, other, wide), gated_linear(other, other, near))
