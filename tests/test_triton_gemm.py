"""The Triton matrix products and their epilogues against float64, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import torch
import triton_interpreter  # mends bfloat16 before a kernel is defined
from gemm_launches import Forced, laid, launches
from lanewise.kernels import target
from lanewise.kernels.gemm import linear, matmul
from lanewise.kernels.gemm.tiles import PERSISTENT, TILED, Problem
from numerics import activation_error, assert_matmul_close, assert_within, matmul_error
from strategies import DTYPES, randn
from torch import Tensor

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


def check_sums(out: Tensor, x: Tensor, weight: Tensor, residual: Tensor, activation: str) -> None:
    z = reference.linear(x, weight)
    size = x.double().abs() @ weight.double().abs().mT
    error = activation_error(z, matmul_error(size, x.size(-1)), activation)
    ref = reference.linear(x, weight, None, residual, activation=activation)
    assert_within(out, ref, error + torch.finfo(torch.float32).eps * ref.abs())


def check_matmul(a: Tensor, b: Tensor) -> None:
    out = matmul(a, b)
    assert out.dtype == a.dtype
    size = a.double().abs() @ b.double().abs()
    assert_matmul_close(out, reference.matmul(a, b), size, a.size(-1))


# To the interpreter, warps and stages are nothing: each tile once, from any architecture.
TILES = {
    (tile.m, tile.n, problem): (architecture, problem)
    for architecture, rows in TILED.rows.items()
    for problem, tile in rows.items()
}


@pytest.mark.parametrize(("architecture", "problem"), TILES.values())
@pytest.mark.parametrize("k", [256, 77])
def test_every_tile_of_the_table(
    monkeypatch: pytest.MonkeyPatch, architecture: str, problem: str, k: int
) -> None:
    kind, bits = problem.rsplit(maxsplit=1)
    dtype = {"16": torch.bfloat16, "32": torch.float32}[bits]
    tile = TILED.rows[architecture][problem]
    Forced(monkeypatch, architecture).tile(tile)
    rows = 3 * tile.m - 5 if kind == "few" else tile.m + 3
    check(randn((rows, k), dtype, 1), randn((tile.n + 9, k), dtype, 2), None, None, "none")


@pytest.mark.parametrize("layouts", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("problem", PERSISTENT.rows["sm_90"])
def test_persistent_programs_compute_several_tiles(
    monkeypatch: pytest.MonkeyPatch, problem: str, layouts: str
) -> None:
    """Two programs share tiles of which most are cut, of batches whose b is one, or many."""
    tile = PERSISTENT.rows["sm_90"][problem]
    Forced(monkeypatch, "sm_90", units=2).tile(tile)
    launched = launches(monkeypatch)
    for batch in ((), (2,)):
        a = laid((2, tile.m + 8, 104), torch.bfloat16, layouts[0], 1)
        b = laid((*batch, 104, tile.n + 16), torch.bfloat16, layouts[1], 2)
        check_matmul(a, b)
    assert launched == [("persistent_product", (2,))] * 2


def test_persistent_tiles_have_the_same_extents_everywhere() -> None:
    """So that the interpreter, to which warps and stages are nothing, need run but one's."""
    extents = [[(t.m, t.n) for t in rows.values()] for rows in PERSISTENT.rows.values()]
    assert all(e == extents[0] for e in extents)


def test_the_epilogue_of_a_persistent_program(monkeypatch: pytest.MonkeyPatch) -> None:
    Forced(monkeypatch, "sm_90", units=2).tile(PERSISTENT.rows["sm_90"]["large"])
    launched = launches(monkeypatch)
    x, weight = randn((2, 90, 200), torch.float16, 1), randn((304, 200), torch.float16, 2)
    residual = randn((2, 90, 307), torch.float16, 4)[..., 1:305]  # rows that start anywhere
    check(x, weight, randn((304,), torch.float16, 3), residual, "gelu")
    out = linear(x, weight, None, residual.float(), "silu")
    assert (out.dtype, len(launched)) == (torch.float32, 2)
    check_sums(out, x, weight, residual.float(), "silu")


@pytest.mark.parametrize("units", [4, 64])
@pytest.mark.parametrize("kind", ["few 16", "small 16", "large 16", "persistent"])
def test_split_sums(monkeypatch: pytest.MonkeyPatch, kind: str, units: int) -> None:
    """Chunks of K, of which the last is shorter; the epilogue sees their sum, once."""
    tile = PERSISTENT.rows["sm_90"]["medium"] if kind == "persistent" else TILED.rows["sm_90"][kind]
    Forced(monkeypatch, "sm_90", units).tile(tile)
    monkeypatch.setattr("lanewise.kernels.gemm.tiles.SHORTEST_CHUNK", 128)
    launched = launches(monkeypatch)
    rows = 5 if kind == "few 16" else 72
    x, weight = randn((rows, 456), torch.bfloat16, 1), randn((80, 456), torch.bfloat16, 2)
    bias, residual = randn((80,), torch.bfloat16, 3), randn((rows, 80), torch.bfloat16, 4)
    check(x, weight, bias, residual, "gelu")
    assert [kernel for kernel, _ in launched][-1] == "sum_of_chunks"
    many = laid((2, 400, rows), torch.bfloat16, "t", 5).mT
    check_matmul(many, laid((2, 400, 72), torch.bfloat16, "n", 6))


def test_no_depth_is_no_box() -> None:
    a, b = torch.empty(4096, 0, dtype=torch.bfloat16), torch.empty(0, 8192, dtype=torch.bfloat16)
    assert Problem(4096, 8192, 0, 1, 2, False).choose(target.ARCHITECTURES["sm_90"]).chunks == 1
    assert not matmul(a[:200], b[:, :64]).any()
    assert not linear(a[:200], b[:, :64].mT.contiguous()).any()


def test_what_is_split_fills_the_units_and_no_more() -> None:
    h100 = target.ARCHITECTURES["sm_90"]

    def chosen(rows: int, columns: int, depth: int, boxes: bool = True) -> tuple[str, int]:
        choice = Problem(rows, columns, depth, 1, 2, boxes).choose(h100)
        found = [
            f"{table.name} {kind}"
            for table in (TILED, PERSISTENT)
            for kind, tile in table.rows["sm_90"].items()
            if tile is choice.tile
        ]
        return found[0], choice.chunks

    assert chosen(4096, 4096, 4096) == ("persistent_product large", 1)
    assert chosen(4096, 4096, 4096, boxes=False) == ("tiled_product large 16", 1)
    assert chosen(512, 4096, 4096) == ("persistent_product medium", 1)
    assert chosen(1024, 1024, 65536) == ("persistent_product medium", 2)
    assert chosen(64, 4096, 4096) == ("tiled_product small 16", 4)
    assert chosen(1, 4096, 4096) == ("tiled_product few 16", 4)
    assert chosen(1, 128256, 4096) == ("tiled_product few 16", 1)
    assert chosen(300, 600, 500) == ("tiled_product small 16", 1)


def test_only_what_a_descriptor_describes_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Forced(monkeypatch, "sm_90", units=1)
    launched = launches(monkeypatch)
    a, b = randn((128, 64), torch.bfloat16, 1), randn((64, 256), torch.bfloat16, 2)
    wide = randn((128, 72), torch.bfloat16, 3)
    for x, y in (
        (a, b),
        (wide[:, 8:], b),
        (a, b.mT.contiguous().mT),
        (a.expand(3, 128, 64), b),
        (wide[:, 1:65], b),  # starts 2 bytes past a multiple of 16
        (randn((128, 65), torch.bfloat16, 4)[:, :64], b),  # rows 130 bytes apart
        (a, b[:, :255]),  # an output whose rows are 510 bytes apart
        (a.float(), b.float()),
        (a.repeat_interleave(2, 1)[:, ::2], b),
    ):
        check_matmul(x, y)
    kernels = [kernel for kernel, _ in launched]
    assert kernels == ["persistent_product"] * 4 + ["tiled_product"] * 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_that_do_not_merge(dtype: torch.dtype) -> None:
    """Heads between tokens; each side broadcast in another dimension; more than two dimensions."""
    heads = randn((2, 40, 3, 24), dtype, 1).transpose(1, 2)
    check_matmul(heads, heads.mT)
    check_matmul(randn((2, 1, 20, 24), dtype, 2), randn((3, 24, 33), dtype, 3))
    check_matmul(randn((2, 1, 2, 9, 24), dtype, 4), randn((3, 1, 24, 17), dtype, 5))
    check_matmul(randn((2, 3, 2, 9, 24), dtype, 6).transpose(0, 2), randn((24, 17), dtype, 7))


def test_many_rows_of_programs_are_all_visited() -> None:
    """More groups of GROUP_M row tiles than one, the last of them incomplete, several columns."""
    x, weight = randn((64 * 19, 16), torch.bfloat16, 1), randn((200, 16), torch.bfloat16, 2)
    check(x, weight, None, None, "none")


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
    x = torch.empty(40 * apart, dtype=torch.bfloat16).as_strided((8, 40), (1, apart))
    x.copy_(randn((8, 40), torch.bfloat16))  # columns, each read in one access
    assert torch.equal(matmul(x, weight.mT), matmul(x.contiguous(), weight.mT))
    assert torch.equal(matmul(weight, x.mT), matmul(weight, x.mT.contiguous()))


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
