"""What only the GPU kernels of gated products have, their tiles, in Triton's interpreter."""

from __future__ import annotations

import pytest
import reference
import torch
import triton_interpreter  # noqa: F401  mends bfloat16 before a kernel is defined
from gemm_launches import Forced, laid, launches
from lanewise.kernels import target
from lanewise.kernels.gemm import (
    gated_linear,
    gated_linear_for_backward,
    gated_linear_packed,
    pack_weight,
)
from lanewise.kernels.gemm.gated_tiles import GATED, PERSISTENT, SUM, TILED
from lanewise.kernels.gemm.tiles import Problem
from numerics import EPS32, activation_error, assert_matmul_close, assert_within, matmul_error
from reference import ACTIVATIONS
from strategies import randn
from torch import Tensor

# NumPy warns where a GPU silently makes the same infinity or NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def check(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    activation: str,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
) -> None:
    """Both sums' bounds, carried through the activation and the product of the two; and the same
    bits where the sums are not kept."""
    rest = (gate_bias, up_bias, activation)
    out, *sums = gated_linear_for_backward(x, gate, up, *rest)
    sides = ((gate, gate_bias), (up, up_bias))
    refs = [reference.linear(x, weight, bias) for weight, bias in sides]
    sizes = [
        x.double().abs() @ weight.double().abs().mT + (0.0 if bias is None else bias.double().abs())
        for weight, bias in sides
    ]
    for found, ref, size in zip(sums, refs, sizes, strict=True):
        assert found.dtype == torch.float32
        assert_matmul_close(found, ref, size, x.size(-1))
    z_error, u_error = (matmul_error(size, x.size(-1)) for size in sizes)
    a, u = ACTIVATIONS[activation](refs[0]), refs[1]
    a_error = activation_error(refs[0], z_error, activation)
    error = a.abs() * u_error + u.abs() * a_error + a_error * u_error + EPS32 * (a * u).abs()
    assert out.dtype == x.dtype
    assert_within(out, a * u, error)
    assert torch.equal(gated_linear(x, gate, up, *rest), out)


def operands(
    rows: int, columns: int, depth: int, dtype: torch.dtype, layouts: str = "nnn"
) -> tuple[Tensor, Tensor, Tensor]:
    """x and both weights, in the layouts of the three."""
    x = laid((rows, depth), dtype, layouts[0], 1)
    gate, up = (laid((columns, depth), dtype, layouts[i], i + 1, 0.5) for i in (1, 2))
    return x, gate, up


# To the interpreter, warps and stages are nothing: each tile once, from any architecture.
TILES = {
    (tile.m, tile.n, problem): (architecture, problem)
    for architecture, rows in TILED.rows.items()
    for problem, tile in rows.items()
}


@pytest.mark.parametrize(("architecture", "problem"), TILES.values())
@pytest.mark.parametrize("k", [128, 77])
def test_every_tile_of_the_table(
    monkeypatch: pytest.MonkeyPatch, architecture: str, problem: str, k: int
) -> None:
    kind, bits = problem.rsplit(maxsplit=1)
    dtype = {"16": torch.bfloat16, "32": torch.float32}[bits]
    tile = TILED.rows[architecture][problem]
    Forced(monkeypatch, architecture).tile(tile)
    rows = 3 * tile.m - 5 if kind == "few" else tile.m + 3
    check(*operands(rows, tile.n + 9, k, dtype), "silu")


@pytest.mark.parametrize("layouts", ["nnn", "tnn", "ntt", "ttn", "nnt"])
@pytest.mark.parametrize("problem", PERSISTENT.rows["sm_90"])
def test_persistent_programs_compute_several_tiles(
    monkeypatch: pytest.MonkeyPatch, problem: str, layouts: str
) -> None:
    """Two programs share tiles of which most are cut, and so is K."""
    tile = PERSISTENT.rows["sm_90"][problem]
    Forced(monkeypatch, "sm_90", units=2).tile(tile)
    launched = launches(monkeypatch)
    check(*operands(tile.m + 8, tile.n + 16, 104, torch.bfloat16, layouts), "silu")
    assert launched == [("persistent_gated_product", (2,))] * 2


def test_persistent_tiles_have_the_same_extents_everywhere() -> None:
    """So that the interpreter, to which warps and stages are nothing, need run but one's."""
    extents = [[(t.m, t.n) for t in rows.values()] for rows in PERSISTENT.rows.values()]
    assert all(e == extents[0] for e in extents)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("chunks", [1, 2])
def test_the_epilogue_of_a_persistent_program(
    monkeypatch: pytest.MonkeyPatch, chunks: int, activation: str
) -> None:
    """Both biases, one, or none; of the weights' dtype or float32; added here or by the sum."""
    Forced(monkeypatch, "sm_90", units=4 * chunks).tile(PERSISTENT.rows["sm_90"]["medium"])
    monkeypatch.setattr("lanewise.kernels.gemm.tiles.SHORTEST_CHUNK", 64)
    launched = launches(monkeypatch)
    bias = randn((104,), torch.float32, 4)
    for dtype, biases in (
        (torch.bfloat16, (bias.bfloat16(), bias)),
        (torch.float16, (None, bias.half())),
        (torch.bfloat16, (None, None)),
    ):
        check(*operands(139, 104, 136, dtype), activation, *biases)
    summed = ["sum_of_gated_chunks"] * (chunks > 1)
    assert [kernel for kernel, _ in launched] == ["persistent_gated_product", *summed] * 6


@pytest.mark.parametrize(
    ("kind", "dtype", "activation"),
    [
        *(("few 16", torch.bfloat16, activation) for activation in ACTIVATIONS),
        ("few 16", torch.float16, "gelu"),
        ("few 32", torch.float32, "gelu"),
        ("small 16", torch.bfloat16, "silu"),
        ("large 16", torch.float16, "silu"),
    ],
)
def test_split_sums(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype, activation: str
) -> None:
    """Chunks of K, of which the last is shorter; biases and the activation see their sum, once."""
    Forced(monkeypatch, "sm_90", units=12).tile(TILED.rows["sm_90"][kind])
    monkeypatch.setattr("lanewise.kernels.gemm.tiles.SHORTEST_CHUNK", 128)
    launched = launches(monkeypatch)
    given = operands(5 if kind.startswith("few") else 72, 75, 461, dtype)
    own, wide = randn((75,), dtype, 4), randn((75,), torch.float32, 5)
    check(*given, activation, own, wide)
    check(*given, activation)
    assert [kernel for kernel, _ in launched] == ["tiled_gated_product", "sum_of_gated_chunks"] * 4
    first, again = (gated_linear(*given, own, wide, activation) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("layouts", ["tnn", "ntt", "nnt"])
def test_split_sums_of_other_layouts(monkeypatch: pytest.MonkeyPatch, layouts: str) -> None:
    Forced(monkeypatch, "sm_90", units=12).tile(TILED.rows["sm_90"]["few 16"])
    monkeypatch.setattr("lanewise.kernels.gemm.tiles.SHORTEST_CHUNK", 128)
    launched = launches(monkeypatch)
    check(*operands(24, 72, 400, torch.bfloat16, layouts), "silu")
    assert launched[-1][0] == "sum_of_gated_chunks"


def test_packed_weights_are_split_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    Forced(monkeypatch, "sm_90", units=12).tile(TILED.rows["sm_90"]["few 16"])
    launched = launches(monkeypatch)
    x, gate, up = operands(1, 72, 1100, torch.bfloat16)
    expected = gated_linear(x, gate, up)
    assert torch.equal(gated_linear_packed(x, pack_weight(gate), pack_weight(up)), expected)
    assert [kernel for kernel, _ in launched if kernel.startswith("sum")] == [
        "sum_of_gated_chunks"
    ] * 2


@pytest.mark.parametrize("architecture", SUM.rows)
def test_every_tile_of_the_sum(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    """The table's own: more columns than one, and rows that it does not divide."""
    shipped = target.ARCHITECTURES[architecture]
    monkeypatch.setattr(target, "of", lambda device: shipped)
    launched = launches(monkeypatch)
    columns = SUM.rows[architecture]["any"].n + 13
    check(*operands(3, columns, 1100, torch.bfloat16), "silu")
    assert launched[-1][0] == "sum_of_gated_chunks"


@pytest.mark.parametrize("rows", [3, 200])
def test_no_depth_leaves_the_biases(rows: int) -> None:
    x, weight = torch.empty(rows, 0, dtype=torch.bfloat16), torch.empty(64, 0, dtype=torch.bfloat16)
    bias = randn((64,), torch.float32)
    assert not gated_linear(x, weight, weight).any()
    out, *sums = gated_linear_for_backward(x, weight, weight, bias, bias, "relu")
    assert torch.equal(out, (bias.relu() * bias).bfloat16().expand(rows, 64))
    assert all(torch.equal(found, bias.expand(rows, 64)) for found in sums)


@pytest.mark.parametrize(("rows", "columns"), [(0, 64), (200, 0), (0, 0)])
def test_nothing_is_computed_of_nothing(rows: int, columns: int) -> None:
    out, *sums = gated_linear_for_backward(
        randn((rows, 40), torch.float16), *(randn((columns, 40), torch.float16) for _ in range(2))
    )
    assert all(found.shape == (rows, columns) for found in (out, *sums))


def test_what_is_split_fills_the_units_and_no_more() -> None:
    h100 = target.ARCHITECTURES["sm_90"]

    def chosen(rows: int, columns: int, depth: int, boxes: bool = True) -> tuple[str, int]:
        choice = Problem(rows, columns, depth, 1, 2, boxes, tables=GATED).choose(h100)
        found = [
            f"{table.name} {kind}"
            for table in (TILED, PERSISTENT)
            for kind, tile in table.rows["sm_90"].items()
            if tile is choice.tile
        ]
        return found[0], choice.chunks

    assert chosen(4096, 14336, 4096) == ("persistent_gated_product large", 1)
    assert chosen(4096, 14336, 4096, boxes=False) == ("tiled_gated_product large 16", 1)
    assert chosen(512, 5120, 4096) == ("persistent_gated_product medium", 1)
    assert chosen(512, 1024, 16384) == ("persistent_gated_product medium", 2)
    assert chosen(64, 1024, 8192) == ("tiled_gated_product small 16", 8)
    assert chosen(1, 1024, 14336) == ("tiled_gated_product few 16", 8)
    assert chosen(1, 4096, 4096) == ("tiled_gated_product few 16", 2)
    assert chosen(1, 14336, 4096) == ("tiled_gated_product few 16", 1)
    assert chosen(300, 600, 500) == ("tiled_gated_product small 16", 1)


def test_only_what_a_descriptor_describes_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Forced(monkeypatch, "sm_90", units=1)
    launched = launches(monkeypatch)
    x, gate, up = operands(128, 128, 64, torch.bfloat16)
    apart = randn((128, 65), torch.bfloat16, 4)[:, :64]  # rows 130 bytes apart
    far = randn((128, 72), torch.bfloat16, 5)
    for given in (
        (x, gate, up),
        (x, gate.mT.contiguous().mT, up),
        (far[:, 8:], gate, up),
        (far[:, 1:65], gate, up),  # starts 2 bytes past a multiple of 16
        (apart, gate, up),
        (x, apart, up),
        (x, gate, apart),
        (x, gate[:127], up[:127]),  # an output whose rows are 254 bytes apart
        (x.float(), gate.float(), up.float()),
        (x[:32], gate, up),
    ):
        check(*given, "silu")
    kernels = [kernel for kernel, _ in launched[::2]]
    assert kernels == ["persistent_gated_product"] * 3 + ["tiled_gated_product"] * 7


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
