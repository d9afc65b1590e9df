"""Matrix products against float64: linear, gated_linear, matmul and their packed forms.

Forward results obey the bound of the contract, element by element; so do the gradients that are
matrix products themselves. Gradients through an activation are compared with torch's.
"""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import (
    EPS32,
    LIPSCHITZ,
    activation_error,
    assert_matmul_close,
    assert_no_worse_than,
    assert_threads_agree,
    assert_within,
    matmul_error,
)
from reference import ACTIVATIONS
from strategies import (
    DTYPES,
    LAYOUTS,
    activations,
    batch_shapes,
    dtypes,
    extents,
    layouts,
    or_interpreted,
    positive_extents,
    randn,
    seeds,
)
from torch import Tensor

import lanewise


def product_error(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The bound on x @ weight.T + bias before rounding; a bias counts as one more term."""
    size = x.double().abs() @ weight.double().abs().mT
    if bias is not None:
        size = size + bias.double().abs()
    return matmul_error(size, x.shape[-1] + (bias is not None))


def check_linear(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> None:
    z = reference.linear(x, weight, bias)
    error = activation_error(z, product_error(x, weight, bias), activation)
    ref = reference.linear(x, weight, bias, residual, activation=activation)
    if residual is not None:  # one more float32 addition
        error = error + EPS32 * (ref.abs() + residual.double().abs())
    assert out.dtype == x.dtype
    assert_within(out, ref, error)


def check_gated(
    out: Tensor,
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    activation: str = "silu",
) -> None:
    z, u = reference.linear(x, gate, gate_bias), reference.linear(x, up, up_bias)
    a = ACTIVATIONS[activation](z)
    a_error = activation_error(z, product_error(x, gate, gate_bias), activation)
    u_error = product_error(x, up, up_bias)
    error = a.abs() * u_error + u.abs() * a_error + a_error * u_error + EPS32 * (a * u).abs()
    assert out.dtype == x.dtype
    assert_within(out, a * u, error)


def linear_packed(x: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Tensor:
    return lanewise.linear_packed(x, lanewise.pack_weight(weight), *rest, **options)


def gated_linear_packed(x: Tensor, gate: Tensor, up: Tensor, *rest: Any, **options: Any) -> Tensor:
    gate, up = lanewise.pack_weight(gate), lanewise.pack_weight(up)
    return lanewise.gated_linear_packed(x, gate, up, *rest, **options)


Op = Callable[..., Tensor]
LINEARS = pytest.mark.parametrize("op", [lanewise.linear, linear_packed])
GATED_LINEARS = pytest.mark.parametrize("op", [lanewise.gated_linear, gated_linear_packed])


def any_strides(t: Tensor, how: str) -> Tensor:
    """The same values with the last two dimensions swapped in memory, or every other element."""
    if how == "column major" and t.dim() > 1:
        return t.mT.contiguous().mT
    if how == "strided":
        return t.repeat_interleave(2, dim=-1)[..., ::2]
    return t


inner_strides = st.sampled_from(("row major", "column major", "strided"))


@st.composite
def biases(draw: st.DrawFn, size: int, dtype: torch.dtype) -> Tensor | None:
    """None, or of the activations' dtype or float32."""
    kind = draw(st.sampled_from((None, dtype, torch.float32)))
    return None if kind is None else randn((size,), kind, draw(seeds))


# --- linear and gated_linear ---------------------------------------------------------------------


@LINEARS
@given(
    data=st.data(),
    batch=batch_shapes,
    inner=extents,
    outer=extents,
    dtype=dtypes,
    activation=activations,
)
def test_linear(
    op: Op,
    data: st.DataObject,
    batch: tuple[int, ...],
    inner: int,
    outer: int,
    dtype: torch.dtype,
    activation: str,
) -> None:
    def tensor(*shape: int, scale: float = 1.0) -> Tensor:
        return randn(shape, dtype, data.draw(seeds), data.draw(layouts), scale)

    def matrix(*shape: int, scale: float = 1.0) -> Tensor:
        return any_strides(tensor(*shape, scale=scale), data.draw(inner_strides))

    rows = (*batch, data.draw(extents)) if data.draw(st.booleans()) else batch
    x, weight = matrix(*rows, inner), matrix(outer, inner, scale=0.5)
    bias = data.draw(biases(outer, dtype))
    residual = tensor(*rows, outer) if data.draw(st.booleans()) else None
    out = op(x, weight, bias, residual, activation=activation)
    check_linear(out, x, weight, bias, residual, activation)


@GATED_LINEARS
@given(
    data=st.data(),
    batch=batch_shapes,
    inner=extents,
    outer=extents,
    dtype=dtypes,
    activation=activations,
)
def test_gated_linear(
    op: Op,
    data: st.DataObject,
    batch: tuple[int, ...],
    inner: int,
    outer: int,
    dtype: torch.dtype,
    activation: str,
) -> None:
    def matrix(*shape: int, scale: float = 1.0) -> Tensor:
        t = randn(shape, dtype, data.draw(seeds), data.draw(layouts), scale)
        return any_strides(t, data.draw(inner_strides))

    x = matrix(*batch, data.draw(extents), inner)
    gate, up = matrix(outer, inner, scale=0.5), matrix(outer, inner, scale=0.5)
    gate_bias, up_bias = data.draw(biases(outer, dtype)), data.draw(biases(outer, dtype))
    out = op(x, gate, up, gate_bias, up_bias, activation=activation)
    check_gated(out, x, gate, up, gate_bias, up_bias, activation=activation)


# Past every cache block, and the skinny shapes that take other paths.
LARGE = [
    (1, 1500, 700),
    (2, 900, 800),
    (3, 700, 1100),
    (4, 1300, 400),
    (6, 513, 300),
    (8, 777, 333),
    (17, 2100, 65),
    (or_interpreted(300, 140), or_interpreted(600, 200), or_interpreted(500, 150)),
]


@LINEARS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "inner", "outer"), LARGE)
def test_linear_past_the_blocks(
    op: Op, dtype: torch.dtype, rows: int, inner: int, outer: int
) -> None:
    x, weight = randn((rows, inner), dtype, 1), randn((outer, inner), dtype, 2, "sliced", 0.1)
    bias, residual = randn((outer,), dtype, 3), randn((rows, outer), dtype, 4, "sliced")
    out = op(x, weight, bias, residual, activation="gelu")
    check_linear(out, x, weight, bias, residual, "gelu")


@GATED_LINEARS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "inner", "outer"), LARGE)
def test_gated_linear_past_the_blocks(
    op: Op, dtype: torch.dtype, rows: int, inner: int, outer: int
) -> None:
    x = randn((rows, inner), dtype, 1)
    gate, up = (
        randn((outer, inner), dtype, 2, scale=0.1),
        randn((outer, inner), dtype, 3, scale=0.1),
    )
    check_gated(op(x, gate, up), x, gate, up)


@LINEARS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_give_the_bits_of_contiguous_inputs(
    op: Op, layout: str, dtype: torch.dtype
) -> None:
    x, weight = randn((3, 5, 33), dtype, 1, layout), randn((20, 33), dtype, 2, layout)
    residual = randn((3, 5, 20), dtype, 3, layout)
    strided = op(x, weight, None, residual, activation="silu")
    dense = op(x.contiguous(), weight.contiguous(), None, residual.contiguous(), activation="silu")
    assert torch.equal(strided, dense)


@LINEARS
def test_empty_sums_are_zero(op: Op) -> None:
    x, weight, bias, residual = randn((4, 0)), randn((3, 0)), randn((3,)), randn((4, 3))
    assert (op(x, weight) == 0).all()
    assert torch.equal(op(x, weight, bias), bias.expand(4, 3))
    assert torch.equal(op(x, weight, bias, residual, activation="relu"), bias.relu() + residual)
    assert op(randn((0, 5)), randn((3, 5))).shape == (0, 3)
    assert op(randn((2, 5)), randn((0, 5))).shape == (2, 0)


@GATED_LINEARS
def test_empty_gated_sums_are_zero(op: Op) -> None:
    weight = randn((3, 0))
    assert (op(randn((4, 0)), weight, weight) == 0).all()
    assert op(randn((0, 5)), randn((3, 5)), randn((3, 5))).shape == (0, 3)


@LINEARS
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_in_their_row(op: Op, activation: str, dtype: torch.dtype) -> None:
    x, weight = randn((9, 40), dtype, 1), randn((21, 40), dtype, 2).abs() + 0.1
    x[2, 7], x[4, 39], x[6, 0] = math.nan, math.inf, math.nan
    out = op(x, weight, activation=activation)
    ref = reference.linear(x, weight, activation=activation)
    assert torch.equal(out.isnan(), ref.isnan())
    assert torch.equal(out.isinf(), ref.isinf())
    assert out[[2, 6]].isnan().all()
    assert not out[[0, 1, 3, 5, 7, 8]].isnan().any()


@LINEARS
@pytest.mark.parametrize("where", ["weight", "bias", "residual"])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_nan_of_every_input_reaches_the_output(op: Op, where: str, activation: str) -> None:
    inputs = {"weight": randn((21, 40)), "bias": randn((21,)), "residual": randn((9, 21))}
    inputs[where].view(-1)[5] = math.nan
    x = randn((9, 40))
    out = op(x, **inputs, activation=activation)
    ref = reference.linear(x, **inputs, activation=activation)
    assert ref.isnan().any()
    assert torch.equal(out.isnan(), ref.isnan())


@LINEARS
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_over_their_range(op: Op, activation: str, dtype: torch.dtype) -> None:
    """Through a 1 × 1 weight of one, the op is the activation."""
    tiny, huge = 1e-7, 6e4
    x = torch.cat(
        [
            torch.linspace(-12, 12, 2001),
            torch.tensor([0.0, tiny, -tiny, 88.0, -88.0, 104.0, -104.0, huge, -huge]),
        ]
    ).to(dtype)[:, None]
    one = torch.ones(1, 1, dtype=dtype)
    check_linear(op(x, one, activation=activation), x, one, activation=activation)
    assert op(x[:1] * math.inf * -1, one, activation=activation).item() == (
        1.0 if activation == "tanh" else math.inf
    )


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5, 130])
def test_threads_agree(dtype: torch.dtype, rows: int) -> None:
    x, weight, up = (
        randn(s, dtype, i) for i, s in enumerate([(rows, 300), (257, 300), (257, 300)])
    )
    x.requires_grad_()
    weight.requires_grad_()

    def run() -> tuple[Tensor, ...]:
        out = lanewise.linear(x, weight, activation="gelu")
        return out, *torch.autograd.grad(out, (x, weight), torch.ones_like(out))

    assert_threads_agree(run)
    assert_threads_agree(lambda: lanewise.gated_linear(x, weight, up))
    assert_threads_agree(lambda: lanewise.matmul(x, up.mT))
    assert_threads_agree(lambda: linear_packed(x.detach(), up))


# --- packed weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_is_deterministic_and_ignores_the_layout(dtype: torch.dtype) -> None:
    weight = randn((37, 50), dtype, 1, "sliced")
    packed = lanewise.pack_weight(weight)
    assert torch.equal(packed, lanewise.pack_weight(weight.contiguous()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_weight_survives_copies(dtype: torch.dtype) -> None:
    x, weight = randn((4, 50), dtype, 1), randn((37, 50), dtype, 2)
    packed = lanewise.pack_weight(weight)
    out = lanewise.linear_packed(x, packed)
    assert torch.equal(lanewise.linear_packed(x, packed.clone()), out)
    check_linear(out, x, weight)


@pytest.mark.cpu  # a GPU has other tiles for few rows, and may split their sums
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_whatever_the_rows_beside_it(dtype: torch.dtype) -> None:
    x, weight = randn((70, 900), dtype, 1), randn((260, 900), dtype, 2)
    gate, up = lanewise.pack_weight(weight), lanewise.pack_weight(weight.flip(0))
    for op in (
        lambda rows: lanewise.linear_packed(rows, gate, activation="gelu"),
        lambda rows: lanewise.gated_linear_packed(rows, gate, up),
    ):
        whole = op(x)
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 13, 15, 29, 64):
            assert torch.equal(op(x[:rows]), whole[:rows])


def test_a_gated_gradient_can_be_taken_again() -> None:
    """What the forward kept is not used up, and the forward that keeps has the same bits."""
    x, gate, up = (randn((n, 30), seed=n).requires_grad_() for n in (7, 9, 9))
    out = lanewise.gated_linear(x, gate, up)
    first, second = (
        torch.autograd.grad(out, (x, gate, up), torch.ones_like(out), retain_graph=True)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with torch.no_grad():
        assert torch.equal(lanewise.gated_linear(x, gate, up), out)


# --- memory --------------------------------------------------------------------------------------


# The fields of malloc.h's struct mallinfo2, in order.
MALLINFO2 = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


def allocated() -> int:
    """Bytes that the C library's allocator has handed out and not got back."""

    class Mallinfo2(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO2]

    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    info = mallinfo2()
    return info.uordblks + info.hblkhd  # in use, and mapped


@pytest.mark.cpu
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc from 2.33 on")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 16, 130])
def test_working_memory_is_kept_and_bounded(dtype: torch.dtype, rows: int) -> None:
    """A product leaves nothing behind once its buffers are there, which caches bound."""
    cols = 20_000
    x, weight = randn((rows, 300), dtype, 1), randn((cols, 300), dtype, 2)
    packed = lanewise.pack_weight(weight)

    def products() -> None:
        for _ in range(3):
            lanewise.linear(x, weight)
            lanewise.linear_packed(x, packed, activation="silu")
            lanewise.matmul(x.mT, x)

    gc.disable()
    try:
        start = allocated()
        products()
        first = allocated()
        products()
        second = allocated()
    finally:
        gc.enable()
    # Python's own objects come and go in between.
    assert abs(second - first) < 64 << 10
    assert first - start < (8 << 20) * torch.get_num_threads()


# --- matmul --------------------------------------------------------------------------------------


@given(data=st.data(), m=extents, n=extents, k=extents, dtype=dtypes)
def test_matmul(data: st.DataObject, m: int, n: int, k: int, dtype: torch.dtype) -> None:
    full = data.draw(batch_shapes)
    a_batch, b_batch = full, full
    if data.draw(st.booleans()):  # broadcast one side against the other
        a_batch = tuple(1 if data.draw(st.booleans()) else e for e in full)
        b_batch = full[data.draw(st.integers(0, len(full))) :]

    def operand(*shape: int) -> Tensor:
        t = randn(shape, dtype, data.draw(seeds), data.draw(layouts))
        return any_strides(t, data.draw(inner_strides))

    check_matmul(operand(*a_batch, m, k), operand(*b_batch, k, n))


def check_matmul(a: Tensor, b: Tensor) -> None:
    out = lanewise.matmul(a, b)
    assert out.dtype == a.dtype
    size = a.double().abs() @ b.double().abs()
    assert_matmul_close(out, reference.matmul(a, b), size, a.shape[-1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [
        (1, 1500, or_interpreted(700, 200)),
        (or_interpreted(300, 140), or_interpreted(600, 200), or_interpreted(500, 150)),
        (5, 2100, 33),
        (or_interpreted(513, 140), 3, or_interpreted(513, 140)),
    ],
)
@pytest.mark.parametrize("how_a", ["row major", "column major", "strided"])
@pytest.mark.parametrize("how_b", ["row major", "column major"])
def test_matmul_past_the_blocks(
    dtype: torch.dtype, m: int, k: int, n: int, how_a: str, how_b: str
) -> None:
    a, b = any_strides(randn((m, k), dtype, 1), how_a), any_strides(randn((k, n), dtype, 2), how_b)
    check_matmul(a, b)


def test_matmul_nan_and_infinity() -> None:
    a, b = randn((7, 20), seed=1), randn((20, 33), seed=2)
    a[1, 3], a[2, 19], b[4, 30] = math.nan, math.inf, math.nan
    out, ref = lanewise.matmul(a, b), reference.matmul(a, b)
    assert torch.equal(out.isnan(), ref.isnan())
    assert torch.equal(out.isinf(), ref.isinf())


def test_zero_times_nan_is_nan() -> None:
    a, b = torch.zeros(3, 5), torch.full((5, 4), math.nan)
    assert lanewise.matmul(a, b).isnan().all()
    assert lanewise.linear(a, b.mT.contiguous()).isnan().all()
    assert linear_packed(a, b.mT.contiguous()).isnan().all()


# --- gradients -----------------------------------------------------------------------------------


@given(
    data=st.data(),
    batch=st.sampled_from(((), (2,), (2, 3), (0,))),
    m=positive_extents,
    n=positive_extents,
    k=positive_extents,
    dtype=dtypes,
)
def test_matmul_gradients(
    data: st.DataObject, batch: tuple[int, ...], m: int, n: int, k: int, dtype: torch.dtype
) -> None:
    b_batch = data.draw(st.sampled_from((batch, ())))
    a = randn((*batch, m, k), dtype, data.draw(seeds)).requires_grad_()
    b = any_strides(randn((*b_batch, k, n), dtype, data.draw(seeds)), data.draw(inner_strides))
    b.requires_grad_()
    out = lanewise.matmul(a, b)
    g = randn(out.shape, dtype, 3)
    grad_a, grad_b = torch.autograd.grad(out, (a, b), g)

    a64, b64, g64 = a.detach().double(), b.detach().double(), g.double()
    assert_matmul_close(grad_a, g64 @ b64.mT, g64.abs() @ b64.abs().mT, n)
    if b_batch == batch:
        assert_matmul_close(grad_b, a64.mT @ g64, a64.abs().mT @ g64.abs(), m)
    else:  # summed over the broadcast batch: torch rounds each summand, so it is the measure
        summed = tuple(range(len(batch)))
        peer = (a.detach().mT @ g).sum(summed)
        assert_no_worse_than(grad_b, (a64.mT @ g64).sum(summed), peer)


@given(
    data=st.data(),
    rows=positive_extents,
    inner=positive_extents,
    outer=positive_extents,
    dtype=dtypes,
)
def test_linear_gradients_are_matrix_products(
    data: st.DataObject, rows: int, inner: int, outer: int, dtype: torch.dtype
) -> None:
    x = randn((2, rows, inner), dtype, 1, data.draw(layouts)).requires_grad_()
    weight = randn((outer, inner), dtype, 2, data.draw(layouts)).requires_grad_()
    bias, residual = (randn(s, dtype, 3).requires_grad_() for s in [(outer,), (2, rows, outer)])
    g = randn((2, rows, outer), dtype, 4, data.draw(layouts))
    out = lanewise.linear(x, weight, bias, residual)
    grads = torch.autograd.grad(out, (x, weight, bias, residual), g)

    x64, w64, g64 = (t.detach().double().reshape(-1, t.shape[-1]) for t in (x, weight, g))
    shape = (2, rows, inner)
    assert_matmul_close(
        grads[0], (g64 @ w64).view(shape), (g64.abs() @ w64.abs()).view(shape), outer
    )
    assert_matmul_close(grads[1], g64.mT @ x64, g64.abs().mT @ x64.abs(), 2 * rows)
    assert_matmul_close(grads[2], g64.sum(0), g64.abs().sum(0), 2 * rows)
    assert torch.equal(grads[3], g)


def check_gradients(op: Op, meaning: Op, inputs: list[Tensor], **options: Any) -> None:
    """No worse than autograd through plain torch at the same dtype: as it is asked, and with rows
    around, since it sums a lone row's products in another order than those of many rows."""

    def grads(f: Op, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.detach().to(dtype).requires_grad_() for t in inputs]
        out = f(*leaves, **options)
        g = randn(out.shape, inputs[0].dtype, seed=9)
        return torch.autograd.grad(out, leaves, g.to(out.dtype))

    def among_others(x: Tensor, *others: Tensor, **options: Any) -> Tensor:
        return meaning(x.expand(8, *x.shape), *others, **options)[0]

    dtype = inputs[0].dtype
    ours, ref = grads(op, dtype), grads(meaning, torch.float64)
    peers = zip(*(grads(way, dtype) for way in (meaning, among_others)), strict=True)
    for i, (a, b, others) in enumerate(zip(ours, ref, peers, strict=True)):
        assert a.dtype == dtype, i
        assert_no_worse_than(a, b, *others)


def torch_linear(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, *, activation: str
) -> Tensor:
    return ACTIVATIONS[activation](torch.nn.functional.linear(x, weight, bias)) + residual


def torch_gated(
    x: Tensor, gate: Tensor, up: Tensor, gate_bias: Tensor, up_bias: Tensor, *, activation: str
) -> Tensor:
    a = ACTIVATIONS[activation](torch.nn.functional.linear(x, gate, gate_bias))
    return a * torch.nn.functional.linear(x, up, up_bias)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [(33,), (2, 3, 7), (1,)])
def test_linear_gradients(activation: str, dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    shapes = [(*batch, 65), (40, 65), (40,), (*batch, 40)]
    inputs = [randn(s, dtype, i, scale=0.5) for i, s in enumerate(shapes)]
    check_gradients(lanewise.linear, torch_linear, inputs, activation=activation)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [(33,), (2, 3, 7), (1,)])
def test_gated_linear_gradients(
    activation: str, dtype: torch.dtype, batch: tuple[int, ...]
) -> None:
    shapes = [(*batch, 65), (40, 65), (40, 65), (40,), (40,)]
    inputs = [randn(s, dtype, i, scale=0.5) for i, s in enumerate(shapes)]
    check_gradients(lanewise.gated_linear, torch_gated, inputs, activation=activation)


@pytest.mark.parametrize("needed", range(4))
def test_only_the_needed_gradient_is_made(needed: int) -> None:
    inputs = [randn(s, seed=i) for i, s in enumerate([(4, 6), (5, 6), (5,), (4, 5)])]
    inputs[needed].requires_grad_()
    lanewise.linear(*inputs, activation="gelu").sum().backward()
    assert [t.grad is not None for t in inputs] == [i == needed for i in range(4)]


def test_gradients_of_saturated_activations_are_finite() -> None:
    """Far from zero every derivative is 0 or 1: an exponential that overflows must not show."""
    x = torch.tensor([[-2e4], [-200.0], [-90.0], [90.0], [200.0], [2e4]]).requires_grad_()
    one = torch.ones(1, 1)
    for activation in ACTIVATIONS:
        (grad,) = torch.autograd.grad(lanewise.linear(x, one, activation=activation).sum(), x)
        right = 0.0 if activation == "tanh" else 1.0
        left = 1.0 if activation == "none" else 0.0
        assert grad.flatten().tolist() == [left] * 3 + [right] * 3, activation
        assert LIPSCHITZ[activation] >= 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_residual_makes_a_float32_output(dtype: torch.dtype) -> None:
    x, weight = randn((7, 40), dtype), randn((9, 40), dtype, seed=1)
    residual = randn((7, 9), seed=2)
    for out in (
        lanewise.linear(x, weight, None, residual, activation="relu"),
        lanewise.linear_packed(x, lanewise.pack_weight(weight), None, residual, activation="relu"),
    ):
        assert out.dtype == torch.float32
        ref = reference.linear(x, weight, None, residual, activation="relu")
        magnitude = x.double().abs() @ weight.double().abs().T + residual.double().abs()
        assert_matmul_close(out, ref, magnitude, 40)


def test_a_float32_residual_keeps_gradients_of_a_16_bit_product() -> None:
    x, weight = randn((7, 40), torch.bfloat16), randn((9, 40), torch.bfloat16, seed=1)
    residual = torch.zeros(7, 9, requires_grad=True)
    x.requires_grad_()
    weight.requires_grad_()
    lanewise.linear(x, weight, None, residual).sum().backward()
    assert (x.grad.dtype, weight.grad.dtype, residual.grad.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    )
    torch.testing.assert_close(
        x.grad, weight.detach().double().sum(0).bfloat16().expand(7, 40), rtol=2**-7, atol=0
    )


def test_the_bias_gradient_of_many_rows_does_not_drift() -> None:
    rows = or_interpreted(1 << 17, 1 << 13)
    bias = torch.zeros(8, requires_grad=True)
    out = lanewise.linear(torch.zeros(rows, 1), torch.zeros(8, 1), bias)
    out.backward(torch.full((rows, 8), 0.1))
    exact = rows * torch.tensor(0.1).double()
    assert (bias.grad.double() - exact).abs().max() <= 32 * 2**-24 * exact


def test_views_too_large_for_offsets_are_refused() -> None:
    one = torch.zeros(1, 1)
    with pytest.raises(RuntimeError, match=r"lanewise\.pack_weight: weight is too large"):
        lanewise.pack_weight(one.expand(8, 2**58))
    with pytest.raises(RuntimeError, match=r"lanewise\.matmul: a must have no dimension above"):
        lanewise.matmul(one.expand(2, 2**58), one.expand(2**58, 16))
    damaged = lanewise.pack_weight(torch.zeros(8, 4)).view(-1)[:64].clone().view(8, 8)
    damaged.view(-1)[24:32] = torch.tensor([2**58]).view(torch.uint8)
    with pytest.raises(RuntimeError, match=r"lanewise\.linear_packed: "):
        lanewise.linear_packed(torch.zeros(1).expand(2**58), damaged)


def test_an_empty_product_of_a_huge_batch() -> None:
    out = lanewise.matmul(torch.zeros(1, 0, 3).expand(2**40, 0, 3), torch.zeros(3, 2))
    assert out.shape == (2**40, 0, 2)
