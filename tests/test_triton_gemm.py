"""The Triton linear kernel and its epilogues against float64, in Triton's interpreter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import reference
import torch
import triton_interpreter  # mends bfloat16 before a kernel is defined
from hypothesis import given
from hypothesis import strategies as st
from numerics import activation_error, assert_within, matmul_error
from strategies import DTYPES, activations, batch_shapes, dtypes, extents, randn, values
from torch import Tensor

from lanewise.kernels import target
from lanewise.kernels.gemm import linear
from lanewise.kernels.gemm.tiles import TILED

# NumPy warns where a GPU silently makes the same infinity or NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def check(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str
) -> None:
    """The product's bound, carried through the epilogue, with a rounding for each sum."""
    z = reference.linear(x, weight, bias)
    size = x.double().abs() @ weight.double().abs().mT
    if bias is not None:
        size = size + bias.double().abs()
    error = activation_error(z, matmul_error(size, x.size(-1)), activation)
    out = linear(x, weight, bias, residual, activation)
    ref = reference.linear(x, weight, bias, residual, activation=activation)
    if residual is not None:
        error = error + torch.finfo(torch.float32).eps * ref.abs()
    assert out.dtype == x.dtype
    assert_within(out, ref, error)


@given(
    data=st.data(), batch=batch_shapes, n=extents, k=extents, dtype=dtypes, activation=activations
)
def test_linear(
    data: st.DataObject,
    batch: tuple[int, ...],
    n: int,
    k: int,
    dtype: torch.dtype,
    activation: str,
) -> None:
    def maybe(shape: tuple[int, ...]) -> Tensor | None:
        return data.draw(st.one_of(st.none(), values(shape, dtype)))

    x, weight = data.draw(values((*batch, k), dtype)), data.draw(values((n, k), dtype))
    check(x, weight, maybe((n,)), maybe((*batch, n)), activation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_every_activation_past_the_tiles(dtype: torch.dtype, activation: str) -> None:
    x, weight = randn((2, 90, 200), dtype, 1), randn((150, 200), dtype, 2, scale=0.2)
    check(x, weight, randn((150,), dtype, 3), randn((2, 90, 150), dtype, 4), activation)


@pytest.mark.parametrize(
    ("architecture", "problem"), [(a, row) for a, rows in TILED.rows.items() for row in rows]
)
@pytest.mark.parametrize("k", [256, 77])
def test_every_tile_of_the_table(
    monkeypatch: pytest.MonkeyPatch, architecture: str, problem: str, k: int
) -> None:
    kind, bits = problem.split()
    dtype = {"16": torch.bfloat16, "32": torch.float32}[bits]
    tile = TILED.rows[architecture][problem]
    monkeypatch.setattr(target, "of", lambda device: target.ARCHITECTURES[architecture])
    monkeypatch.setattr("lanewise.kernels.gemm.tiles.choose", lambda *_: tile)
    rows = 3 * tile.m - 5 if kind == "few" else tile.m + 3
    check(randn((rows, k), dtype, 1), randn((tile.n + 9, k), dtype, 2), None, None, "none")


def test_many_rows_of_programs_are_all_visited() -> None:
    """More groups of GROUP_M row tiles than one, the last of them incomplete, several columns."""
    x, weight = randn((64 * 19, 16), torch.bfloat16, 1), randn((200, 16), torch.bfloat16, 2)
    check(x, weight, None, None, "none")


@pytest.mark.parametrize("dtype", DTYPES)
def test_operands_of_any_strides(dtype: torch.dtype) -> None:
    x, weight = randn((70, 2, 33), dtype, 1).permute(1, 2, 0), randn((70, 90), dtype, 2).mT
    check(x, weight, randn((90,), torch.float32, 3), None, "none")


def test_nothing_to_sum_leaves_the_epilogue_of_zero() -> None:
    x, weight, bias, residual = torch.empty(3, 0), torch.empty(5, 0), randn((5,)), randn((3, 5))
    assert torch.equal(linear(x, weight, bias, residual, "relu"), bias.relu() + residual)


def test_nan_and_infinity_pass_through() -> None:
    x, weight = randn((3, 8)), randn((4, 8), seed=1)
    x[0, 1], x[1, 2] = math.nan, math.inf
    for activation in ("none", "relu", "gelu", "gelu_tanh", "silu", "tanh"):
        out = linear(x, weight, activation=activation)
        assert out[0].isnan().all(), activation
        assert not out[2].isnan().any(), activation
    assert torch.equal(linear(x, weight)[1], x[1] @ weight.mT)


@pytest.mark.parametrize("activation", ["tanh", "gelu_tanh"])
def test_tanh_keeps_its_digits_near_zero(activation: str) -> None:
    z = torch.logspace(-30, 1.5, 4001, base=10.0, dtype=torch.float64).float()
    z = torch.cat([-z, z, torch.zeros(1)])
    out = linear(torch.ones(1, 1), z[:, None], activation=activation)[0].double()
    ref = reference.ACTIVATIONS[activation](z.double())
    assert ((out - ref).abs() <= 4 * 2**-23 * torch.minimum(z.double().abs(), ref.abs() + 1)).all()


def test_rows_further_apart_than_32_bits() -> None:
    apart = 2**30 + 8
    x = torch.empty(2 * apart + 16, dtype=torch.bfloat16).as_strided((3, 16), (apart, 1))
    x.copy_(randn((3, 16), torch.bfloat16))
    weight = randn((5, 16), torch.bfloat16, 1)
    assert torch.equal(linear(x, weight), linear(x.clone(), weight))
    assert torch.equal(linear(weight, x), linear(weight, x.clone()))
    apart = 2**26 + 8
    x = torch.empty(40 * apart, dtype=torch.bfloat16).as_strided((1, 40), (1, apart))
    x.copy_(randn((1, 40), torch.bfloat16))
    weight = randn((5, 40), torch.bfloat16, 1)
    assert torch.equal(linear(x, weight), linear(x.contiguous(), weight))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"x": torch.zeros(2, 8).double()}, "x must be float32, bfloat16 or float16, got float64"),
        ({"x": torch.zeros(())}, "x must have at least 1 dimension, got shape []"),
        ({"weight": torch.zeros(8)}, "weight must have 2 dimensions, got shape [8]"),
        ({"weight": torch.zeros(4, 9)}, "weight has 9 input features, which is not x's 8"),
        ({"weight": torch.zeros(4, 8).half()}, "weight must be float32, got float16"),
        ({"weight": torch.zeros(4, 8, device="meta")}, "weight must be on cpu like the first"),
        ({"bias": torch.zeros(3)}, "bias has 3 elements, which is not the 4 output features"),
        ({"residual": torch.zeros(4)}, "residual must have the output's shape [2, 4], got [4]"),
        (
            {"activation": "swish"},
            "activation must be one of none, relu, gelu, gelu_tanh, silu, tanh, got 'swish'",
        ),
    ],
)
def test_a_wrong_argument_is_named(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        linear(**{"x": torch.zeros(2, 8), "weight": torch.zeros(4, 8), **changed})
    assert str(caught.value).startswith(f"lanewise.linear: {sentence}")


def test_the_mended_interpreter_rounds_as_torch_does() -> None:
    """Every bfloat16, the halfway points between neighbours and their neighbours in float32."""
    upper = torch.arange(2**16, dtype=torch.int64) << 16
    bits = torch.stack([upper + low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    exact = torch.from_numpy(bits.numpy().astype(np.uint32).view(np.float32))
    mended = torch.from_numpy(triton_interpreter.narrow(exact.numpy()).astype(np.int32))
    rounded = exact.to(torch.bfloat16)
    finite = ~exact.isnan()
    assert torch.equal(mended[finite], rounded.view(torch.int16).int()[finite] & 0xFFFF)
    assert np.isnan(triton_interpreter.widen(mended[~finite].numpy().astype(np.uint16))).all()
